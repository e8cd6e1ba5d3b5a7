"""
Time a step of training beside a bare forward and backward pass, in the folder of a clone.

  python benchmarks/training.py DIRECTORY [--epochs 3] [--cases 300] [--prepare] [--ANY_ID_OF_TRAIN_JSON VALUE]

DIRECTORY holds cases and their datalist.json. With --cases, so many full-size cases are generated there first, if it
holds none; with --prepare all are prepared and cached before the first step. Each epoch begins with ten bare passes on
random patches that lie on the device, so both meet the same disturbances.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from statistics import median
from typing import Any

import fire
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from omnet_monai.datalist import datalist
from omnet_monai.demo import bundle_root
from omnet_monai.phantom import write_phantoms
from omnet_monai.regions import TASKS
from omnet_monai.timing import process_memory

PASSES = 10


def training(directory: str, epochs: int = 3, cases: int = 0, prepare: bool = False, **overrides: Any) -> None:
    """Print the median seconds of a step and of a bare pass, their ratio per epoch, and the memory of the process."""
    folder = Path(directory)
    if cases and not (folder / "datalist.json").exists():
        write_phantoms(folder, cases, size=(240, 240, 155))
        datalist(directory, folds=1)
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "train.json")
    out = {
        "bundle_root": str(folder),
        "dataset_dir": directory,
        "train#trainer#max_epochs": epochs,
        "validate#dataset#data": [],
    }
    parser.update({**out, "curriculum#milestones": None, **overrides})
    logging.disable(logging.INFO)
    trainer, network = parser.get_parsed_content("train#trainer"), parser.get_parsed_content("network")
    bare = _Bare(parser, network)
    if prepare:
        start, dataset = time.perf_counter(), parser.get_parsed_content("train#dataset")
        for position in range(len(dataset)):
            dataset[position]
        took = time.perf_counter() - start
        print(f"prepared {len(dataset)} cases in {took:.0f} s; memory {process_memory('VmRSS'):.2f} GB", flush=True)
    steps: list[float] = []
    last = 0.0

    @trainer.on(Events.EPOCH_STARTED)
    def run_bare(engine: Engine) -> None:
        nonlocal last
        bare.run(PASSES)
        steps.clear()
        last = 0.0

    @trainer.on(Events.ITERATION_COMPLETED)
    def mark(engine: Engine) -> None:
        nonlocal last
        _wait(bare.image.device)
        now = time.perf_counter()
        if last:  # the first step of an epoch also starts its workers
            steps.append(now - last)
        last = now

    @trainer.on(Events.EPOCH_COMPLETED)
    def tell(engine: Engine) -> None:
        step, alone = median(steps), median(bare.times)
        times = f"step {step:.3f} s, forward and backward alone {alone:.3f} s, ratio {step / alone:.3f}"
        memory = f"resident memory {process_memory('VmRSS'):.2f} GB, peak {process_memory('VmHWM'):.2f} GB"
        print(f"epoch {engine.state.epoch}: {times}, {len(bare.image) / step:.1f} patches/s; {memory}", flush=True)

    trainer.run()


class _Bare:
    """Forward and backward passes on random patches of the step's size, all tasks active."""

    def __init__(self, parser: ConfigParser, network: torch.nn.Module) -> None:
        per_task, device = parser["cases_per_step"] * parser["patches_per_task"], parser.get_parsed_content("device")
        size = parser.get_parsed_content("patch_size")
        self.network, self.times = network, list[float]()
        self.inferer, self.loss = parser.get_parsed_content("train#inferer"), parser.get_parsed_content("loss_function")
        self.image = torch.randn(per_task * len(TASKS), 4, *size, device=device)
        label = torch.randint(0, 4, (len(self.image), 1, *size), device=device, dtype=torch.uint8)
        self.target = {"label": label, "task": torch.arange(len(self.image), device=device) % len(TASKS)}

    def run(self, number: int) -> None:
        self.times.clear()
        self.network.train()
        for _ in range(number):
            start = time.perf_counter()
            logits = self.inferer(self.image, self.network, num_tasks=len(TASKS))
            self.loss(logits, self.target).backward()
            _wait(self.image.device)
            self.times.append(time.perf_counter() - start)
            self.network.zero_grad(set_to_none=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    fire.Fire(training)
