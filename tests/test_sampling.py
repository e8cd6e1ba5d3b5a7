"""Cases carry their number, so that an order of cases can be read off the samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, Randomizable, RandScaleIntensityd

from omnet_monai import sampling
from omnet_monai.regions import EDEMA, ENHANCING
from omnet_monai.sampling import EpochDataset, EpochSampler, EpochSeedHandler
from omnet_monai.transforms import RandCropByTaskd

SIZE = (4, 4, 4)
# Two workers are meant, also where there is one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")


class Draw(Randomizable):
    """Put a random number beside a case's own."""

    def __call__(self, case: int) -> tuple[int, float]:
        return case, float(self.R.random())


def make_patches(length: int = 6, seed: int = 0) -> EpochDataset:
    """Make a dataset of three cases whose samples are six randomly cut and scaled patches each."""
    cases = []
    for number in range(3):
        rng = np.random.default_rng(number)
        label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
        label[:, 1:7, 2:7, 1:6] = EDEMA
        label[:, 3:5, 3:6, 2:5] = ENHANCING if number else EDEMA
        cases.append(
            {"image": torch.from_numpy(rng.normal(number, 1, (4, 8, 8, 8)).astype(np.float32)), "label": label}
        )
    transform = [RandCropByTaskd(SIZE), RandScaleIntensityd("image", prob=1.0, factors=0.25, channel_wise=True)]
    return EpochDataset(cases, transform, length, seed)


def draws(dataset: EpochDataset, epoch: int = 1) -> list[Any]:
    return [dataset[number] for number in samples_of(dataset, epoch)]


def samples_of(dataset: EpochDataset, epoch: int = 1) -> EpochSampler:
    sampler = EpochSampler(dataset)
    sampler.epoch = epoch
    return sampler


def images(samples: list[Any]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(patch["image"]) for patches in samples for patch in patches])


def test_a_sample_depends_on_its_position_and_not_on_what_was_read_before() -> None:
    in_order = draws(make_patches())
    dataset = make_patches()
    for position in (5, 0, 0, 3, 2, 5, 1, 4):
        torch.testing.assert_close(images([dataset[position]]), images([in_order[position]]), rtol=0, atol=0)
    assert len(images(in_order).flatten(1).unique(dim=0)) == 6 * 6


@pytest.mark.parametrize("num_workers", [0, 2], ids=lambda n: f"{n} workers")
def test_workers_do_not_change_a_sample(num_workers: int) -> None:
    dataset = make_patches()
    for epoch in (1, 2):
        expected = draws(dataset, epoch)
        batches = list(DataLoader(dataset, batch_size=2, sampler=samples_of(dataset, epoch), num_workers=num_workers))
        assert [len(batch["image"]) for batch in batches] == [12] * 3
        loaded = torch.cat([torch.as_tensor(batch["image"]) for batch in batches])
        torch.testing.assert_close(loaded, images(expected), rtol=0, atol=0)
        tasks = [task for batch in batches for task in batch["task"].tolist()]
        assert tasks == [patch["task"] for patches in expected for patch in patches]


def test_seed_and_epoch_each_change_the_draws() -> None:
    numbers = [
        tuple(number for _, number in draws(EpochDataset([7], Draw(), 4, seed), epoch))
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    assert len(set(numbers)) == 4
    assert all(len(set(four)) == 4 for four in numbers)
    assert numbers[0] == tuple(number for _, number in draws(EpochDataset([7], Draw(), 4, 0), 1))


@pytest.mark.parametrize(
    ("cases", "length", "epochs"), [(3, 4, 3), (5, 2, 5), (2, 7, 2), (4, 4, 3), (1, 3, 2)], ids=str
)
def test_cases_are_seen_equally_often_whatever_the_length_of_an_epoch(cases: int, length: int, epochs: int) -> None:
    dataset = EpochDataset(range(cases), Compose([]), length)
    drawn = [case for epoch in range(1, epochs + 1) for case in draws(dataset, epoch)]
    for start in range(0, len(drawn), cases):
        assert sorted(drawn[start : start + cases]) == list(range(cases))
    assert set(Counter(drawn).values()) == {length * epochs // cases}


def test_each_pass_over_the_cases_is_shuffled_anew() -> None:
    dataset = EpochDataset(range(10), Compose([]), 10)
    passes = [tuple(draws(dataset, epoch)) for epoch in (1, 2, 3)]
    assert len({*passes, tuple(range(10))}) == 4


def test_processes_share_out_the_cases_and_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling.idist, "get_world_size", lambda: 2)
    datasets = []
    for rank in (0, 1):
        monkeypatch.setattr(sampling.idist, "get_rank", lambda rank=rank: rank)
        datasets.append((EpochDataset(range(6), Compose([]), 3), EpochDataset([7], Draw(), 4)))
    for epoch in (1, 2):
        first, second = (draws(dataset, epoch) for dataset, _ in datasets)
        assert sorted(first + second) == list(range(6))
        first, second = ([number for _, number in draws(dataset, epoch)] for _, dataset in datasets)
        assert not set(first) & set(second)


@pytest.mark.parametrize("num_workers", [0, 2], ids=lambda n: f"{n} workers")
def test_a_trainer_reads_each_epochs_own_samples(num_workers: int) -> None:
    dataset = make_patches(length=4)
    read: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    trainer = Engine(lambda engine, batch: read[engine.state.epoch].append(torch.as_tensor(batch["image"])))
    EpochSeedHandler(sampler := EpochSampler(dataset)).attach(trainer)
    loader = DataLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    trainer.run(loader, max_epochs=3)
    for epoch, batches in read.items():
        torch.testing.assert_close(torch.cat(batches), images(draws(make_patches(length=4), epoch)), rtol=0, atol=0)


def test_an_empty_list_of_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="training needs at least one case, the data list is empty"):
        EpochDataset([], Draw(), 4)


def test_the_samples_of_all_epochs_are_numbered_through() -> None:
    dataset = EpochDataset([7], Draw(), 4)
    assert len(samples_of(dataset)) == len(dataset) == 4
    assert [list(samples_of(dataset, epoch)) for epoch in (1, 3)] == [[0, 1, 2, 3], [8, 9, 10, 11]]


def dropped(epochs: int, begun: int = 0, seed: int = 0, extra: int = 0) -> list[torch.Tensor]:
    """Run epochs of two steps, draw a dropout mask in each, and ``extra`` numbers after each epoch."""
    trainer = Engine(lambda engine, batch: F.dropout(torch.ones(64), 0.5))
    masks: list[torch.Tensor] = []
    EpochSeedHandler(EpochSampler(EpochDataset([7], Draw(), 2)), seed).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: masks.append(engine.state.output))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: torch.rand(extra))
    trainer.state.max_epochs, trainer.state.epoch, trainer.state.iteration = epochs, begun, 2 * begun
    trainer.state.epoch_length = 2
    trainer.run(DataLoader(EpochDataset([7], Draw(), 2), batch_size=1))
    return masks


def test_dropout_of_an_epoch_is_the_same_in_a_run_that_begins_there_and_after_a_validation() -> None:
    torch.manual_seed(1)
    masks = torch.stack(dropped(epochs=3))
    assert len(masks.unique(dim=0)) == 6
    torch.manual_seed(2)
    torch.testing.assert_close(torch.stack(dropped(epochs=3, extra=5)), masks)
    torch.testing.assert_close(torch.stack(dropped(epochs=3, begun=2)), masks[4:])
    assert not torch.equal(torch.stack(dropped(epochs=3, seed=1)), masks)
