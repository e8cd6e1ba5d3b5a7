"""Train by a bundle's configs unless that is done, and know how long it took."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, run

from omnet_monai.files import whole_file

__all__ = ["clock", "train_once"]


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
