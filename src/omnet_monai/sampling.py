"""Epochs of a fixed length whose every random number derives from the seed, the epoch, the rank and the position."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import IterableDataset
from monai.transforms import Compose
from torch.utils.data import Dataset, get_worker_info

__all__ = ["EpochDataset", "EpochSeedHandler", "ReadableCases", "first_cause", "workers_beside"]

logger = logging.getLogger(__name__)


class EpochDataset(Dataset):
    """
    One epoch's worth of randomly transformed samples of a dataset.

    Cases are drawn in shuffled passes over the dataset that go on across epochs and are shared out among the
    processes, so each case is seen equally often whatever the length of an epoch. A sample depends on ``(seed, epoch,
    rank, position)`` alone: on no worker, no earlier sample and no interruption.

    Args:
        dataset: cases after the deterministic transforms.
        transform: the random transforms; a list of results is one sample's several patches.
        length: samples per epoch and process.
        seed: seed of everything random.

    Raises:
        ValueError: if the dataset is empty.
    """

    def __init__(self, dataset: Sequence[Any], transform: Callable | Sequence[Callable], length: int, seed: int = 0):
        if not len(dataset):
            raise ValueError("training needs at least one case, the data list is empty")
        self.dataset = dataset
        self.transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.length = length
        self.seed = seed
        self.epoch = 1
        self.rank, self.world_size = idist.get_rank(), idist.get_world_size()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Any:
        """Return the sample at a position of the current epoch."""
        if not 0 <= position < self.length:
            raise IndexError(f"an epoch has {self.length} samples, got position {position}")
        drawn = ((self.epoch - 1) * self.length + position) * self.world_size + self.rank
        turn, place = divmod(drawn, len(self.dataset))
        case = np.random.default_rng([self.seed, turn]).permutation(len(self.dataset))[place]
        self.transform.set_random_state(seed=_derive(self.seed, self.epoch, self.rank, position))
        return self.transform(self.dataset[int(case)])


class EpochSeedHandler:
    """
    Tell the dataset which epoch begins, and seed what the network itself draws (dropout) for that epoch.

    Args:
        dataset: the dataset of the trainer's loader.
        seed: seed of everything random.
    """

    def __init__(self, dataset: EpochDataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Begin an epoch."""
        # ignite asks the loader for a new iterator only after this event, so its workers copy the new epoch.
        self.dataset.epoch = engine.state.epoch
        torch.manual_seed(_derive(self.seed, engine.state.epoch, idist.get_rank()))


def workers_beside(device: torch.device | str) -> int:
    """Tell how many processes cut patches beside a training: four for a GPU, none for a CPU, which they would share."""
    return 4 if torch.device(device).type == "cuda" else 0


class ReadableCases(IterableDataset):
    """
    Cases to evaluate once, in order; one that cannot be read is logged and left out instead of ending the run.

    MONAI's engine ends with the first error that reaches it, so an error must not leave the loading of its case.

    Args:
        data: cases, as in a datalist.
        transform: what loads and prepares a case.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any]) -> None:
        super().__init__(data)
        self.cases, self.prepare = data, transform

    def __iter__(self) -> Iterator[Any]:
        """Load this worker's share of the cases."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for case in self.cases[worker::workers]:
            try:
                yield self.prepare(case)
            except (ValueError, OSError, RuntimeError) as error:  # MONAI makes a RuntimeError of a transform's error
                self.leave_out(case, first_cause(error))

    def leave_out(self, case: Any, error: BaseException) -> None:
        """Log why a case could not be read; subclasses may do more."""
        logger.error(f"left out: {error}")


def first_cause(error: BaseException) -> BaseException:
    """Return the error inside the RuntimeErrors that MONAI's transforms, engines and configs wrap around it."""
    return first_cause(error.__cause__) if type(error) is RuntimeError and error.__cause__ else error


def _derive(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
