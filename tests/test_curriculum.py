"""A stage is how many tasks are active; the losses of the epochs are made by hand."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from omnet_monai.curriculum import Curriculum, CurriculumHandler, PrepareTaskBatch
from omnet_monai.losses import OMNetLoss


def stages(curriculum: Curriculum, epochs: int, losses: Sequence[float] | None = None) -> list[int]:
    """Go through epochs, each with its loss, and list the stage during each."""
    result = []
    for epoch, loss in enumerate([1.0] * epochs if losses is None else losses, start=1):
        curriculum.begin_epoch(epoch, epochs)
        result.append(curriculum.num_tasks)
        curriculum.end_epoch(loss)
    return result


@pytest.mark.parametrize(
    ("milestones", "epochs", "expected"),
    [
        ([1 / 3, 2 / 3], 3, [1, 2, 3]),
        ([1 / 3, 2 / 3], 6, [1, 1, 2, 2, 3, 3]),
        ([0.1, 0.2], 10, [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        ([0.1, 0.2], 5, [1, 2, 3, 3, 3]),
        ([0.25, 0.9], 4, [1, 2, 2, 2]),
        ([0, 0], 3, [2, 3, 3]),
        ([0.5, 0.5], 4, [1, 1, 2, 3]),
        ([0, 1], 3, [2, 2, 2]),
    ],
    ids=[
        "a stage per epoch",
        "thirds",
        "tenths",
        "an epoch at least",
        "rounded up",
        "from the start",
        "equal",
        "never",
    ],
)
def test_tasks_join_once_a_fraction_of_the_epochs_is_done(
    milestones: list[float], epochs: int, expected: list[int]
) -> None:
    assert stages(Curriculum(milestones), epochs) == expected


def test_no_rounding_moves_a_milestone_to_another_epoch() -> None:
    for epochs in range(3, 80):
        for done in range(1, epochs):
            assert stages(Curriculum([done / epochs, 1]), epochs).index(2) == done


@pytest.mark.parametrize("epochs", [1, 2], ids=["one epoch", "two epochs"])
@pytest.mark.parametrize(
    "triggers",
    [{"milestones": [0.1, 0.2]}, {"patience": 1}, {"milestones": [1, 1], "patience": 5}],
    ids=["milestones", "plateau", "both"],
)
def test_fewer_than_three_epochs_leave_no_room_for_stages(epochs: int, triggers: dict[str, Any]) -> None:
    assert stages(Curriculum(**triggers), epochs) == [3] * epochs


def test_a_patience_of_no_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least one epoch, got 0"):
        Curriculum(patience=0)


def test_without_a_trigger_all_tasks_are_active_from_the_first_step() -> None:
    assert not Curriculum().complete
    assert stages(Curriculum(), 4) == [3] * 4


@pytest.mark.parametrize(
    ("patience", "min_change", "losses", "expected"),
    [
        # 0.45 and 0.42 are no 0.1 below 0.5; the joining task's own loss starts high, and is compared with nothing.
        (2, 0.1, [1, 0.5, 0.45, 0.42, 9, 9, 9, 9], [1, 1, 1, 1, 2, 2, 2, 3]),
        # 0.95 is no improvement on 1, 0.89 is one on 1.
        (2, 0.1, [1, 0.95, 0.89, 0.85, 0.78, 0.75], [1, 1, 1, 1, 1, 1]),
        (1, 0.0, [1, 1, 1, 1, 1], [1, 1, 2, 2, 3]),
        (1, 0.0, [5, 4, 3, 2, 1], [1, 1, 1, 1, 1]),
        (1, 0.0, [1, math.nan, math.nan, 1], [1, 1, 2, 3]),
        (3, 0.0, [1, 2, 2, 0.5, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 2]),
    ],
    ids=["flattens twice", "creeps down", "flat", "falls", "not a number", "a better epoch begins the count anew"],
)
def test_a_task_joins_when_the_newest_ones_loss_has_not_improved_for_its_patience(
    patience: int, min_change: float, losses: list[float], expected: list[int]
) -> None:
    assert stages(Curriculum(None, patience, min_change), len(losses), losses) == expected


@pytest.mark.parametrize(
    ("milestones", "patience", "losses", "expected"),
    [
        ([0.5, 0.9], 1, [1] * 10, [1, 1, 2, 2, 3, 3, 3, 3, 3, 3]),
        ([0.5, 0.9], 1, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 1, 2, 2, 2, 2, 3]),
        ([0.5, 0.9], 2, [9, 8, 8, 8, 6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 2, 2, 2, 2, 2, 3]),
        # One stale epoch of task 1 does not count against task 2, which joins by its milestone.
        ([0.5, 1], 2, [4, 3, 2, 1, 1, 5, 4, 3, 2, 1], [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]),
    ],
    ids=["plateau first", "milestones first", "one of each", "each task its own count"],
)
def test_of_two_triggers_the_first_counts(
    milestones: list[float], patience: int, losses: list[float], expected: list[int]
) -> None:
    assert stages(Curriculum(milestones, patience), len(losses), losses) == expected


def test_two_triggers_in_one_epoch_let_one_task_join() -> None:
    # Epoch 3: the loss has been flat for one epoch, and both milestones are past.
    assert stages(Curriculum([0.5, 0.5], patience=1), 4, [2, 2, 1, 1]) == [1, 1, 2, 3]


@pytest.mark.parametrize(
    "milestones", [[0.5], [0.1, 0.2, 0.3], [0.5, 0.4], [-0.1, 0.5], [0.5, 1.1], [math.nan, 0.5]], ids=str
)
def test_milestones_that_are_not_two_ascending_fractions_are_refused(milestones: list[float]) -> None:
    with pytest.raises(ValueError, match=r"milestones must be two ascending fractions in \[0, 1\], got \["):
        Curriculum(milestones)


@pytest.mark.parametrize("done", [0, 2, 3, 5], ids=lambda n: f"after {n} epochs")
def test_a_curriculum_goes_on_from_a_file_of_its_state(tmp_path: Path, done: int) -> None:
    losses = [1, 0.9, 0.9, 0.9, 5, 5, 5, 5]
    straight, first, second = (Curriculum(None, patience=2) for _ in range(3))
    expected = stages(straight, 8, losses)
    assert expected == [1, 1, 1, 1, 2, 2, 2, 3]
    assert stages(first, 8, losses[:done]) == expected[:done]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.staged
    assert second.state_dict() == first.state_dict()
    assert stages(second, 8, losses[done:]) == expected[done:]


@pytest.mark.parametrize("task", ["coarse", "refined", "precise"])
def test_the_only_task_of_a_network_is_active_from_the_first_step(task: str) -> None:
    for triggers in ({}, {"milestones": [0.1, 0.2]}, {"patience": 1}):
        curriculum = Curriculum(**triggers, tasks=[task])
        assert curriculum.complete
        assert stages(curriculum, 6) == [1] * 6


def test_of_two_tasks_the_second_joins_by_the_first_milestone() -> None:
    assert stages(Curriculum([0.25, 0.5], tasks=["coarse", "refined"]), 8) == [1, 1, 2, 2, 2, 2, 2, 2]


def train(
    curriculum: Curriculum,
    epochs: int = 3,
    losses: Sequence[Sequence[float]] = ((1, 2, 3), (3, 4, 7)),
    staged: bool = True,
    metrics: list[dict[str, float]] | None = None,
) -> list[int]:
    """Train nothing for epochs of one step per row of per-task losses; list the stage during each epoch."""
    loss_function = OMNetLoss()
    handler = CurriculumHandler(curriculum, loss_function)
    curriculum.staged = curriculum.staged or staged
    seen: list[int] = []

    def step(engine: Engine, row: Sequence[float]) -> None:
        seen.append(curriculum.num_tasks)
        loss_function.task_losses = torch.tensor(row[: curriculum.num_tasks], dtype=torch.float32)

    trainer = Engine(step)
    handler.attach(trainer)
    if metrics is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: metrics.append(dict(engine.state.metrics)))
    trainer.run(losses, max_epochs=epochs)
    assert seen[:: len(losses)] == seen[len(losses) - 1 :: len(losses)]
    return seen[:: len(losses)]


def test_a_fresh_network_goes_through_the_stages() -> None:
    assert train(Curriculum([1 / 3, 2 / 3])) == [1, 2, 3]


def test_a_run_that_nobody_called_fresh_trains_all_tasks_at_once() -> None:
    curriculum = Curriculum([1 / 3, 2 / 3])
    assert train(curriculum, staged=False) == [3, 3, 3]
    assert curriculum.complete


def test_a_resumed_run_is_not_taken_for_one_with_given_weights() -> None:
    curriculum = Curriculum([1 / 3, 2 / 3])
    curriculum.load_state_dict(Curriculum().state_dict())
    assert train(curriculum, staged=False) == [1, 2, 3]


def test_each_stage_is_marked_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    train(Curriculum([0.4, 0.8]), epochs=5)
    assert [message for message in caplog.messages if message.startswith("Curriculum")] == [
        "Curriculum: 1 of 3 tasks active (coarse), epoch 1.",
        "Curriculum: 2 of 3 tasks active (coarse, refined), epoch 3.",
        "Curriculum: 3 of 3 tasks active (coarse, refined, precise), epoch 5.",
    ]


def test_a_run_that_ends_before_all_tasks_have_joined_says_so(caplog: pytest.LogCaptureFixture) -> None:
    train(Curriculum([1 / 3, 1]))
    assert caplog.messages == ["The run ends with 2 of 3 tasks active: its weights know nothing of precise."]
    caplog.clear()
    train(Curriculum([1 / 3, 2 / 3]))
    assert caplog.messages == []


def test_the_stage_and_epoch_means_of_the_active_tasks_are_metrics_of_the_trainer() -> None:
    metrics: list[dict[str, float]] = []
    train(Curriculum([1 / 3, 2 / 3]), metrics=metrics)
    assert metrics == [
        {"curriculum/num_tasks": 1, "loss/coarse": 2},
        {"curriculum/num_tasks": 2, "loss/coarse": 2, "loss/refined": 3},
        {"curriculum/num_tasks": 3, "loss/coarse": 2, "loss/refined": 3, "loss/precise": 5},
    ]


def test_the_first_process_decides_how_many_tasks_are_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "broadcast", lambda value, src: 2.0)
    assert train(Curriculum([1 / 3, 2 / 3])) == [2, 2, 2]


def test_the_newest_tasks_epoch_mean_is_what_the_plateau_trigger_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    curriculum = Curriculum([1 / 3, 2 / 3])
    monkeypatch.setattr(curriculum, "end_epoch", seen.append)
    assert train(curriculum) == [1, 2, 3]
    assert seen == [2, 3, 5]
    # Flat losses: task 2 joins after the first epoch that brings nothing, task 3 as soon.
    assert train(Curriculum(None, patience=1), epochs=6) == [1, 1, 2, 2, 3, 3]


def test_a_step_without_a_patch_of_a_task_takes_no_part_in_its_epoch_mean() -> None:
    metrics: list[dict[str, float]] = []
    train(Curriculum(), epochs=1, losses=[(1, 2, math.nan), (3, math.nan, math.nan), (5, 8, 7)], metrics=metrics)
    assert metrics == [{"curriculum/num_tasks": 3, "loss/coarse": 3, "loss/refined": 5, "loss/precise": 7}]


def test_an_epoch_mean_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process has means of 4, 7 and 11 beside 2, 3 and 5 of this one.
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(idist, "all_reduce", lambda means: means + torch.tensor([4.0, 7, 11]))
    metrics: list[dict[str, float]] = []
    train(Curriculum(), epochs=1, metrics=metrics)
    assert metrics == [{"curriculum/num_tasks": 3, "loss/coarse": 3, "loss/refined": 5, "loss/precise": 8}]


def test_the_log_names_the_networks_own_tasks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    metrics: list[dict[str, float]] = []
    train(Curriculum([1 / 3, 2 / 3], tasks=["refined"]), epochs=1, metrics=metrics)
    assert caplog.messages == [
        "Curriculum: 1 of 1 tasks active (refined), epoch 1.",
        "Epoch 1 of 1: loss refined 2.000.",
    ]
    assert metrics == [{"curriculum/num_tasks": 1, "loss/refined": 2}]


@pytest.mark.parametrize(
    ("num_tasks", "kept"), [(1, [0, 3]), (2, [0, 1, 3]), (3, [0, 1, 2, 3])], ids=["one task", "two tasks", "all tasks"]
)
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor], ids=["tensors", "meta tensors"])
def test_patches_of_tasks_that_are_not_active_are_dropped(
    num_tasks: int, kept: list[int], kind: type[torch.Tensor]
) -> None:
    image = torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 4, 2, 2, 2).contiguous()
    label = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1, 1).expand(4, 1, 2, 2, 2).contiguous()
    batch = {"image": kind(image), "label": kind(label), "task": torch.tensor([0, 1, 2, 0])}
    curriculum = Curriculum()
    curriculum.num_tasks = num_tasks
    inputs, target, args, kwargs = PrepareTaskBatch(curriculum)(batch, torch.device("cpu"), False)
    assert torch.as_tensor(inputs)[:, 0, 0, 0, 0].tolist() == kept
    assert inputs.shape == (len(kept), 4, 2, 2, 2)
    assert torch.as_tensor(target["label"])[:, 0, 0, 0, 0].tolist() == kept
    assert target["label"].dtype == torch.uint8
    assert target["task"].tolist() == [[0, 1, 2, 0][patch] for patch in kept]
    assert (args, kwargs) == ((), {"num_tasks": num_tasks})


def test_images_kept_in_half_precision_reach_the_network_in_float32() -> None:
    batch = {"image": torch.ones(1, 4, 2, 2, 2).half(), "label": torch.zeros(1, 1, 2, 2, 2), "task": torch.tensor([0])}
    assert PrepareTaskBatch(Curriculum())(batch)[0].dtype == torch.float32


def test_a_step_without_a_patch_of_an_active_task_is_refused() -> None:
    batch = {"image": torch.zeros(2, 4, 2, 2, 2), "label": torch.zeros(2, 1, 2, 2, 2), "task": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=r"a patch of an active task \(coarse\), got patches of later ones alone"):
        PrepareTaskBatch(Curriculum())(batch)


@pytest.mark.parametrize(
    ("task", "kept"), [("coarse", [0, 3]), ("refined", [0, 1, 3]), ("precise", [0, 1, 2, 3])], ids=str
)
def test_a_network_of_a_later_task_alone_keeps_what_cases_without_its_region_lend_it(
    task: str, kept: list[int]
) -> None:
    image, label = torch.zeros(4, 4, 2, 2, 2), torch.zeros(4, 1, 2, 2, 2)
    batch = {"image": image, "label": label, "task": torch.tensor([0, 1, 2, 0])}
    _, target, _, kwargs = PrepareTaskBatch(Curriculum(tasks=[task]))(batch)
    assert target["task"].tolist() == [[0, 1, 2, 0][patch] for patch in kept]
    assert kwargs == {"num_tasks": 1}
