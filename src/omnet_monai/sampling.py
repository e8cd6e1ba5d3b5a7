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
from torch.utils.data import Dataset, Sampler, get_worker_info

__all__ = [
    "EpochDataset",
    "EpochSampler",
    "EpochSeedHandler",
    "ReadableCases",
    "first_cause",
    "with_labels",
    "workers_beside",
]

logger = logging.getLogger(__name__)


class EpochDataset(Dataset):
    """
    Randomly transformed samples of a dataset, epoch after epoch without end.

    Cases are drawn in shuffled passes over the dataset that go on across epochs and are shared out among the
    processes, so each case is seen equally often whatever the length of an epoch. Which case a sample is of, and what
    is drawn for it, follow from the arguments, the process and the sample's number alone: from no worker, no earlier
    sample and no interruption.

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
        self.rank, self.world_size = idist.get_rank(), idist.get_world_size()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Any:
        """Return a sample by its number, counted from 0 at the first epoch's first."""
        epoch, position = divmod(number, self.length)
        turn, place = divmod(number * self.world_size + self.rank, len(self.dataset))
        case = np.random.default_rng([self.seed, turn]).permutation(len(self.dataset))[place]
        self.transform.set_random_state(seed=_derive(self.seed, epoch + 1, self.rank, position))
        return self.transform(self.dataset[int(case)])


class EpochSampler(Sampler[int]):
    """
    Number the samples of the epoch that has begun. So a loader's workers need not know which one that is, and live
    through all of them: on a GPU an epoch may be over in less time than it takes to start them.

    Args:
        dataset: the dataset of the trainer's loader.

    Attributes:
        epoch: the epoch that has begun, counted from 1.
    """

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset
        self.epoch = 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        """List the numbers of the epoch's samples."""
        first = (self.epoch - 1) * len(self)
        return iter(range(first, first + len(self)))


class EpochSeedHandler:
    """
    Tell the sampler which epoch begins, and seed what is drawn beside it (augmentation, dropout) for that epoch.

    Args:
        sampler: the sampler of the trainer's loader.
        seed: seed of everything random.
    """

    def __init__(self, sampler: EpochSampler, seed: int = 0) -> None:
        self.sampler = sampler
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Begin an epoch."""
        self.sampler.epoch = engine.state.epoch  # ignite asks the loader for a new iterator only after this event
        torch.manual_seed(_derive(self.seed, engine.state.epoch, idist.get_rank()))


def workers_beside(device: torch.device | str) -> int:
    """Tell how many processes cut patches beside a training: four for a GPU, none for a CPU, which they would share."""
    return 4 if torch.device(device).type == "cuda" else 0


def with_labels(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Return cases as they are, if all have a label.

    Raises:
        ValueError: naming those without one. A training would end at the first that it draws, one that validates on
            them after its epochs.
    """
    unlabeled = [str(case.get("case", case["image"])) for case in cases if not case.get("label")]
    if unlabeled:
        raise ValueError(f"cases to train on and to score must have a label, {', '.join(unlabeled)} have none")
    return cases


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
