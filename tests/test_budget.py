"""A training that takes a given time, by a clock that only steps move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, Dataset

from omnet_monai import budget
from omnet_monai.budget import TimeBudget
from omnet_monai.sampling import EpochDataset, EpochSampler


class Clock:
    """A clock that stands still but for what a step adds."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(budget, "clock", clock)
    return clock


class Numbers(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> int:
        return place


def train(clock: Clock, steps: dict[int, float], done: int = 0, workers: int = 0) -> tuple[list[Any], TimeBudget]:
    """Train for 20 s in 5 epochs, each step for 1 s or what ``steps`` says; list epoch, rate and data of each step."""
    dataset = EpochDataset(Numbers(), lambda case: case, length=1000)
    sampler = EpochSampler(dataset)
    given, seen = TimeBudget(20, 5, sampler, warmup=0.2), []

    def step(engine: Engine, batch: Any) -> None:
        seen.append((engine.state.epoch, given.rate(), batch.item()))
        clock.time += steps.get(len(seen), 1.0)

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: setattr(sampler, "epoch", engine.state.epoch))
    given.attach(trainer)
    loader = DataLoader(dataset, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    trainer.state.epoch, trainer.state.max_epochs, trainer.state.epoch_length = done, 5, len(loader)
    trainer.state.iteration = done * len(loader)
    trainer.run(loader)
    assert trainer.state.epoch == 5
    return seen, given


def test_each_epoch_takes_its_share_of_the_time(clock: Clock) -> None:
    seen, _ = train(clock, {})
    assert [epoch for epoch, *_ in seen] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    assert clock.time == 120


def test_the_rate_rises_for_the_warm_up_and_then_follows_a_cosine_to_zero(clock: Clock) -> None:
    seen, given = train(clock, {})
    rates = [rate for _, rate, _ in seen]
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])  # 4 of 20 s
    assert rates[12] == pytest.approx(0.5)  # half of the other 16 s
    assert rates[8] == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert given.rate() == pytest.approx(0, abs=1e-9)


def test_a_long_step_takes_the_time_of_later_epochs_and_none_beyond_the_end(clock: Clock) -> None:
    seen, _ = train(clock, {2: 10.0, 5: 50.0})  # at 1, 11 and 12, 13, 63 s
    assert [epoch for epoch, *_ in seen] == [1, 1, 3, 4, 4]


def test_a_resumed_training_has_the_time_that_its_epochs_left(clock: Clock) -> None:
    seen, _ = train(clock, {}, done=3)
    assert [epoch for epoch, *_ in seen] == [4] * 4 + [5] * 4
    assert seen[0][1] == pytest.approx(0.5)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_has_samples_of_its_own(clock: Clock, workers: int) -> None:
    seen, _ = train(clock, {}, workers=workers)
    dataset = EpochDataset(Numbers(), lambda case: case, length=1000)
    for epoch in range(1, 6):
        expected = [dataset[(epoch - 1) * 1000 + place] for place in range(4)]
        assert [data for number, _, data in seen if number == epoch] == expected
