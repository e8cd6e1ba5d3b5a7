"""Train by a bundle's configs for given epochs or a given time, unless that is done, and know how long it took."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, run

from omnet_monai.files import whole_file
from omnet_monai.sampling import EpochSampler

__all__ = ["TimeBudget", "clock", "train_once"]


class TimeBudget:
    """
    Let a training take a given time: each of its epochs an equal share of it, in as many steps as come to their end by
    then. The learning rate follows a cosine down to 0 as time passes, whatever the pace. For one process: the clocks of
    several would end their epochs apart.

    Args:
        seconds: time of the training, by :func:`clock`. A resumed one has what its finished epochs left.
        epochs: the trainer's epochs, of more steps than fit into their time.
        sampler: the sampler of the trainer's loader.
        warmup: share of the time in which the learning rate rises from 0.
    """

    def __init__(self, seconds: float, epochs: int, sampler: EpochSampler, warmup: float = 0.0) -> None:
        self.seconds, self.epochs, self.sampler, self.warmup = seconds, epochs, sampler, warmup
        self.began = clock()

    def rate(self, step: int = 0) -> float:
        """Return the share of the full learning rate at this moment: what a ``LambdaLR`` is given."""
        passed = min(self.passed(), 1.0)
        if passed < self.warmup:
            return passed / self.warmup
        return 0.5 + 0.5 * math.cos(math.pi * (passed - self.warmup) / (1 - self.warmup))

    def passed(self) -> float:
        """Return the share of the time that has passed."""
        return (clock() - self.began) / self.seconds

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_epoch)

    def start(self, engine: Engine) -> None:
        """Begin to count, as if each finished epoch had taken its share."""
        self.began = clock() - self.seconds * engine.state.epoch / self.epochs

    def end_epoch(self, engine: Engine) -> None:
        """End the epoch once its time is over, and with it those whose time a long step has taken too."""
        over = int(self.epochs * min(self.passed(), 1.0))
        if over >= engine.state.epoch:
            engine.state.epoch = over
            self.sampler.epoch = over + 1  # ignite makes the next iterator before the next epoch begins
            engine.terminate_epoch()


def train_once(folder: Path, epochs: int, config_file: Sequence[str], settings: dict[str, Any]) -> float:
    """
    Train a network into ``folder/model.pt``, without validation. If that was done, nothing runs; if it was interrupted,
    it goes on.

    Args:
        folder: for the weights, the checkpoint and the time.
        epochs: epochs to train.
        config_file: the configs, ``train.json`` first.
        settings: config ids to set.

    Returns:
        Seconds that the training took, by :func:`clock`.
    """
    record = folder / "trained.json"
    if not record.is_file():
        _prepare(config_file, settings)  # or the first training on some cases would have paid for the others
        done = _epochs_done(folder / "run" / "checkpoint.pt")
        start = clock()
        settings = settings | {"ckpt_dir": str(folder), "run_dir": str(folder / "run")}
        settings |= {"train#trainer#max_epochs": epochs, "validate#dataset#data": []}
        run(config_file=list(config_file), **settings)
        # Of an interrupted training the last part is known; the rest is taken to have been as fast.
        seconds = (clock() - start) * epochs / (epochs - done % epochs)
        with whole_file(record) as part:
            part.write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")
    return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])


def clock() -> float:
    """
    Return a time in seconds, to take differences of: without a GPU what this process computed, for each of its threads,
    so that other programs on the machine do not change a budget.
    """
    return time.monotonic() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def _prepare(config_file: Sequence[str], settings: dict[str, Any]) -> None:
    """Put the training cases into the cache."""
    parser = ConfigParser()
    parser.read_config(list(config_file))
    parser.update({name: value for name, value in settings.items() if name in parser})
    cases = parser.get_parsed_content("train#dataset")
    for number in range(len(cases)):
        cases[number]


def _epochs_done(checkpoint: Path) -> int:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"] if checkpoint.is_file() else 0
