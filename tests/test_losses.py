"""The loss, by hand on small patches, and which patches count for which task."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.losses import OMNetLoss

PATCH = (32, 32, 16)  # 16,384 voxels
EDEMA, NECROSIS, ENHANCING = 2, 1, 3


def constant_logits(batch: int, shares: list[float], spatial: tuple[int, ...] = (2, 2, 2)) -> torch.Tensor:
    """Logits whose softmax is the given shares at every voxel."""
    logits = torch.tensor(shares).log().reshape(1, -1, *[1] * len(spatial))
    return logits.expand(batch, -1, *spatial).clone()


def label_with(voxels: int, cls: int, spatial: tuple[int, ...] = PATCH) -> torch.Tensor:
    """A patch with this many voxels of a class, shape ``(1, 1, *spatial)``."""
    label = torch.zeros(math.prod(spatial), dtype=torch.uint8)
    label[:voxels] = cls
    return label.reshape(1, 1, *spatial)


def counts(loss: OMNetLoss, task: int, label: torch.Tensor, sampled_for: int) -> bool:
    (counted,) = loss.counts_for(task, label[:, 0], torch.tensor([sampled_for]))
    return bool(counted)


def test_cross_entropy_of_one_patch_by_hand() -> None:
    # Two voxels of each class. Shares 1/8, 1/8, 1/4, 1/2: logs 3, 3, 2, 1 times ln 2, their mean 9/4 ln 2.
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).reshape(1, 1, 2, 2, 2)
    logits = [constant_logits(1, [0.125, 0.125, 0.25, 0.5])]
    loss = OMNetLoss()(logits, {"label": label, "task": torch.tensor([0])})
    assert loss.item() == pytest.approx(2.25 * math.log(2))


def test_the_precise_task_tells_enhancing_from_the_rest() -> None:
    # Shares 3/4 and 1/4. Two voxels of eight enhance and cost ln 4, the six others, tumor or not, cost ln(4/3).
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).reshape(1, 1, 2, 2, 2)
    logits = [constant_logits(1, [0.25] * 4), constant_logits(1, [0.25] * 4), constant_logits(1, [0.75, 0.25])]
    criterion = OMNetLoss(transfer=None)
    criterion(logits, {"label": label, "task": torch.tensor([2])})
    expected = (2 * math.log(4) + 6 * math.log(4 / 3)) / 8
    torch.testing.assert_close(criterion.task_losses, torch.tensor([math.nan, math.nan, expected]), equal_nan=True)


@pytest.mark.parametrize(("task", "sampled_for"), [("coarse", 0), ("refined", 1), ("precise", 2)], ids=str)
def test_a_network_of_one_task_learns_from_the_patches_of_that_task(task: str, sampled_for: int) -> None:
    # Three patches: background, edema and enhancing tumor, each at a share of its own class.
    label = torch.cat([label_with(8 * (cls > 0), cls, (2, 2, 2)) for cls in (0, EDEMA, ENHANCING)])
    shares = [0.5, 0.25] if task == "precise" else [0.5, 0.125, 0.25, 0.125]
    criterion = OMNetLoss(transfer=None, tasks=[task])
    loss = criterion([constant_logits(3, shares)], {"label": label, "task": torch.arange(3)})
    # ln 2 for the background, 2 ln 2 for the edema; of two shares 1/2 and 1/4 enhancing has a third: ln 3.
    expected = {"coarse": math.log(2), "refined": 2 * math.log(2), "precise": math.log(3)}[task]
    assert criterion.task_losses.shape == (1,)
    assert loss.item() == pytest.approx(expected)


def test_a_task_averages_over_the_patches_that_count_and_the_loss_adds_the_tasks() -> None:
    # Patches 0 and 1 count for task 1: background at a share of 1/2 costs ln 2, edema at 1/8 costs 3 ln 2. Patch 2
    # counts for task 2: at shares of 1/4 it costs 2 ln 2.
    label = torch.cat([label_with(voxels, EDEMA, (2, 2, 2)) for voxels in (0, 8, 8)])
    logits = [constant_logits(3, [0.5, 0.25, 0.125, 0.125]), constant_logits(3, [0.25, 0.25, 0.25, 0.25])]
    criterion = OMNetLoss(transfer=None)
    loss = criterion(logits, {"label": label, "task": torch.tensor([0, 0, 1])})
    torch.testing.assert_close(criterion.task_losses, torch.tensor([2.0, 2.0]) * math.log(2))
    assert loss.item() == pytest.approx(4 * math.log(2))


def test_transferred_patches_join_the_mean() -> None:
    # Both patches are full of edema, so patch 0 of task 1 also trains task 2: the mean of 1 ln 2 and 3 ln 2.
    label = label_with(8, EDEMA, (2, 2, 2)).repeat(2, 1, 1, 1, 1)
    refined = torch.cat([constant_logits(1, [0.25, 0.125, 0.5, 0.125]), constant_logits(1, [0.5, 0.25, 0.125, 0.125])])
    criterion = OMNetLoss()
    criterion([constant_logits(2, [0.25] * 4), refined], {"label": label, "task": torch.tensor([0, 1])})
    torch.testing.assert_close(criterion.task_losses, torch.tensor([2.0, 2.0]) * math.log(2))


def test_two_dimensional_patches_have_a_loss_too() -> None:
    label = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 2, 2)
    logits = [constant_logits(1, [0.125, 0.125, 0.25, 0.5], (2, 2))]
    assert OMNetLoss()(logits, {"label": label, "task": torch.tensor([0])}).item() == pytest.approx(2.25 * math.log(2))


@pytest.mark.parametrize("cls", [EDEMA, NECROSIS, ENHANCING], ids=["edema", "necrosis", "enhancing"])
def test_a_patch_transfers_to_the_refined_task_from_6553_voxels_of_any_tumor(cls: int) -> None:
    loss = OMNetLoss()
    assert counts(loss, 1, label_with(6553, cls), sampled_for=0)
    assert not counts(loss, 1, label_with(6552, cls), sampled_for=0)


@pytest.mark.parametrize("cls", [NECROSIS, ENHANCING], ids=["necrosis", "enhancing"])
@pytest.mark.parametrize("sampled_for", [0, 1], ids=["coarse patch", "refined patch"])
def test_a_patch_transfers_to_the_precise_task_from_8192_voxels_of_core(cls: int, sampled_for: int) -> None:
    loss = OMNetLoss()
    assert counts(loss, 2, label_with(8192, cls), sampled_for)
    assert not counts(loss, 2, label_with(8191, cls), sampled_for)


def test_edema_is_no_core() -> None:
    assert not counts(OMNetLoss(), 2, label_with(16384, EDEMA), sampled_for=1)


@pytest.mark.parametrize(("task", "sampled_for"), [(0, 1), (0, 2), (1, 2)], ids=["1 from 2", "1 from 3", "2 from 3"])
def test_nothing_transfers_backwards(task: int, sampled_for: int) -> None:
    assert not counts(OMNetLoss(), task, label_with(16384, ENHANCING), sampled_for)


@pytest.mark.parametrize("task", range(3), ids=["coarse", "refined", "precise"])
def test_a_patch_always_counts_for_the_task_it_was_sampled_for(task: int) -> None:
    assert counts(OMNetLoss(), task, label_with(0, EDEMA), sampled_for=task)


def test_without_transfer_a_patch_counts_for_its_own_task_alone() -> None:
    loss = OMNetLoss(transfer=None)
    full = label_with(16384, ENHANCING)
    assert [[counts(loss, task, full, own) for task in range(3)] for own in range(3)] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_each_patch_of_a_batch_is_judged_by_itself() -> None:
    label = torch.cat([label_with(n, ENHANCING) for n in (0, 6553, 8192, 0, 16384)])[:, 0]
    sampled_for = torch.tensor([0, 0, 0, 1, 2])
    assert OMNetLoss().counts_for(1, label, sampled_for).tolist() == [False, True, True, True, False]
    assert OMNetLoss().counts_for(2, label, sampled_for).tolist() == [False, False, True, False, True]


def test_a_task_without_a_patch_adds_zero_and_a_zero_gradient() -> None:
    logits = [constant_logits(2, [0.25] * 4).requires_grad_() for _ in range(2)]
    criterion = OMNetLoss()
    target = {"label": label_with(0, EDEMA, (2, 2, 2)).repeat(2, 1, 1, 1, 1), "task": torch.tensor([0, 0])}
    loss = criterion(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert criterion.task_losses[1].isnan()  # it has no mean
    assert torch.equal(logits[1].grad, torch.zeros_like(logits[1]))
    assert logits[0].grad.abs().sum() > 0


@pytest.mark.parametrize("weight", [0, 1], ids=["cross entropy", "and Dice"])
@pytest.mark.parametrize(
    "shared", [(2, 0), (1, 0), (1, 3), (0, 0)], ids=["all on one", "a lone one", "on both", "on none"]
)
def test_the_mean_over_processes_is_that_over_all_patches_that_count(
    shared: tuple[int, int], weight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patches of the precise task cost ln 4 each, and n of them together 1 - (4n + 1) / (10n + 1) by Dice; a process
    # without any has a coarse one instead, which does not count.
    total = torch.tensor(float(sum(shared)))
    monkeypatch.setattr("omnet_monai.losses.idist.get_world_size", lambda: 2)
    monkeypatch.setattr("omnet_monai.losses.idist.all_reduce", lambda number: total)
    losses, reported = [], []
    for number in shared:
        task = torch.tensor([2] * number or [0])
        label = torch.full((len(task), 1, 2, 2, 2), ENHANCING)
        criterion = OMNetLoss(transfer=None, tasks=["precise"], dice_weight=weight)
        losses.append(criterion([constant_logits(len(task), [0.75, 0.25])], {"label": label, "task": task}))
        reported.append(criterion.task_losses)
    dice = sum(n * (1 - (4 * n + 1) / (10 * n + 1)) for n in shared) / max(sum(shared), 1)
    expected = math.log(4) + weight * dice if sum(shared) else 0.0
    assert float(sum(losses)) / 2 == pytest.approx(expected)
    assert torch.stack(reported).isnan().all() == (not sum(shared))
    assert torch.stack(reported).isnan().any() == (not sum(shared))


def test_only_patches_that_count_have_a_gradient() -> None:
    logits = [constant_logits(2, [0.25] * 4).requires_grad_() for _ in range(2)]
    label = label_with(0, EDEMA, (2, 2, 2)).repeat(2, 1, 1, 1, 1)
    OMNetLoss()(logits, {"label": label, "task": torch.tensor([0, 1])}).backward()
    touched = [[bool(patch.any()) for patch in scores.grad] for scores in logits]
    assert touched == [[True, False], [False, True]]


@pytest.mark.parametrize("autocast", [True, False], ids=["under autocast", "plain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_logits_give_a_finite_float32_scalar(dtype: torch.dtype, autocast: bool) -> None:
    logits = torch.zeros(1, 4, 2, 2, 2, dtype=dtype)
    logits[:, 0], logits[:, ENHANCING] = 6e4, -6e4  # their exponentials overflow, and their distance in float16
    logits.requires_grad_()
    target = {"label": label_with(4, ENHANCING, (2, 2, 2)), "task": torch.tensor([0])}
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss = OMNetLoss()([logits], target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    # Half of the voxels enhance and cost the distance between the two logits; the other half cost nothing.
    assert loss.item() == pytest.approx(6e4, rel=0.01)
    assert logits.grad.isfinite().all()


def test_task_losses_are_detached_and_as_many_as_the_active_tasks() -> None:
    criterion = OMNetLoss()
    target = {"label": label_with(8, ENHANCING, (2, 2, 2)), "task": torch.tensor([0])}
    shares = [[0.25] * 4, [0.25] * 4, [0.5, 0.5]]
    for tasks in (1, 2, 3):
        loss = criterion([constant_logits(1, s).requires_grad_() for s in shares[:tasks]], target)
        assert criterion.task_losses.shape == (tasks,)
        assert not criterion.task_losses.requires_grad
        torch.testing.assert_close(criterion.task_losses.sum(), loss.detach())


def test_labels_with_meta_data_give_the_same_loss() -> None:
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).reshape(1, 1, 2, 2, 2)
    logits, task = [constant_logits(1, [0.125, 0.125, 0.25, 0.5])], torch.tensor([0])
    plain = OMNetLoss()(logits, {"label": label, "task": task})
    assert float(OMNetLoss()(logits, {"label": MetaTensor(label), "task": task})) == plain.item()


@pytest.mark.parametrize("shape", [(2, 1, 2, 2, 2), (1, 1, 2, 2, 3)], ids=["batch", "spatial"])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    target = {"label": torch.zeros(shape), "task": torch.zeros(shape[0])}
    with pytest.raises(ValueError, match=r"must share a shape, got .*\[1, 2, 2, 2\].* and "):
        OMNetLoss()([constant_logits(1, [0.25] * 4)], target)


def test_dice_of_a_tasks_classes_but_the_first_joins_its_cross_entropy_by_hand() -> None:
    # Two voxels of eight for each class, at shares 1/8, 1/4 and 1/2 of all eight: twice the overlap is 1/2, 1 and 2,
    # the sums are 3, 4 and 6, and each of the two numbers is a voxel larger.
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).reshape(1, 1, 2, 2, 2)
    logits = [constant_logits(1, [0.125, 0.125, 0.25, 0.5])]
    target = {"label": label, "task": torch.tensor([0])}
    dice = (1.5 / 4 + 2 / 5 + 3 / 7) / 3
    for weight in (0, 1, 0.5):
        criterion = OMNetLoss(dice_weight=weight)
        assert criterion(logits, target).item() == pytest.approx(2.25 * math.log(2) + weight * (1 - dice))
        assert criterion.task_losses.item() == pytest.approx(2.25 * math.log(2) + weight * (1 - dice))


def test_dice_is_that_of_all_patches_that_count_together() -> None:
    # The first patch of the precise task is all enhancing, the second has none; the third, half enhancing, is not its
    # own. Twice the overlap is 2 * 6, the sums are 6 + 2 + 8.
    label = torch.cat([label_with(voxels, ENHANCING, (2, 2, 2)) for voxels in (8, 0, 4)])
    scores = torch.cat([constant_logits(1, shares) for shares in ([0.25, 0.75], [0.75, 0.25], [2 / 3, 1 / 3])])
    criterion = OMNetLoss(transfer=None, tasks=["precise"], dice_weight=1)
    loss = criterion([scores], {"label": label, "task": torch.tensor([2, 2, 1])})
    assert loss.item() == pytest.approx(math.log(4 / 3) + 1 - 13 / 17)


def test_dice_asks_for_nothing_where_a_class_is_rightly_absent_and_of_no_patch() -> None:
    empty = {"label": label_with(0, ENHANCING, (2, 2, 2)), "task": torch.tensor([2])}
    sure = torch.tensor([20.0, -20.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2).clone().requires_grad_()
    criterion = OMNetLoss(tasks=["precise"], dice_weight=1)
    assert criterion([sure], empty).item() == pytest.approx(0, abs=1e-6)
    loss = criterion([sure], empty | {"task": torch.tensor([1])})
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(sure.grad, torch.zeros_like(sure))


@pytest.mark.parametrize("weight", [-1, math.nan], ids=str)
def test_a_negative_weight_of_dice_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"dice_weight must not be negative, got {weight}"):
        OMNetLoss(dice_weight=weight)


@pytest.mark.parametrize("transfer", [(0.4,), (0.4, 0.5, 0.6), (-0.1, 0.5), (0.4, 50)], ids=str)
def test_transfer_other_than_two_shares_is_refused(transfer: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"transfer must hold two shares in \[0, 1\], got \("):
        OMNetLoss(transfer)


def test_the_ends_of_the_range_of_transfer_are_shares_too() -> None:
    always, fully = OMNetLoss((0, 0)), OMNetLoss([1, 1])
    assert counts(always, 1, label_with(0, EDEMA), sampled_for=0)
    assert counts(fully, 1, label_with(16384, EDEMA), sampled_for=0)
    assert not counts(fully, 1, label_with(16383, EDEMA), sampled_for=0)
