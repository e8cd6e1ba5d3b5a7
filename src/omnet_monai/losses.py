"""The loss of OM-Net: cross entropy and, if asked for, Dice of each task, with online training-data transfer."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

from omnet_monai.regions import REGIONS, TASKS, tasks_named

__all__ = ["OMNetLoss"]


class OMNetLoss(nn.Module):
    """
    Sum of the active tasks' softmax cross entropies, each a mean over all voxels of the patches that count for it; of
    several processes, the mean of what they return is that over the patches of all of them.

    A patch counts for the task it was sampled for. Online training-data transfer (TIP 2020, section III-B) makes it
    count for a later task too: for the refined task if at least ``transfer[0]`` of its voxels are tumor, for the
    precise task if at least ``transfer[1]`` are core. A task for which no patch counts adds 0.

    Cross entropy is the paper's. A Dice loss beside it (ours) is that of a task's classes but the first, over all
    patches of the process that count for it together.

    Args:
        transfer: least share of WT voxels for the refined task and of TC voxels for the precise task, in [0, 1];
            the number of voxels is rounded down, as in the release. ``None`` switches transfer off.
        tasks: names of the network's tasks, ``None`` for all three.
        dice_weight: how much of each task's Dice loss is added to its cross entropy, 0 or above.

    Attributes:
        task_losses: the detached losses of the tasks that were active in the last call, NaN for a task for which no
            patch counted, shape ``(tasks,)``.

    Raises:
        ValueError: if ``transfer`` does not hold two shares in [0, 1], for a negative ``dice_weight``, and for unknown
            tasks.
    """

    def __init__(
        self,
        transfer: Sequence[float] | None = (0.4, 0.5),
        tasks: Sequence[str] | None = None,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if transfer is not None and (len(transfer) != 2 or not all(0 <= share <= 1 for share in transfer)):
            raise ValueError(f"transfer must hold two shares in [0, 1], got {transfer}")
        if not dice_weight >= 0:
            raise ValueError(f"dice_weight must not be negative, got {dice_weight}")
        self.transfer = transfer
        self.dice_weight = dice_weight
        # Smoothed by a voxel, so that a class that no patch has asks for no voxels instead of counting as missed.
        self.dice = DiceLoss(include_background=False, smooth_nr=1, smooth_dr=1, batch=True)
        self.tasks = tasks_named(tasks)
        self.task_losses = torch.zeros(0)

    def forward(self, logits: Sequence[torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            logits: one tensor per active task, shape ``(B, classes, *spatial)``.
            target: ``label``, the inner classes, shape ``(B, 1, *spatial)``, and ``task``, the index of the task each
                patch was sampled for, shape ``(B,)``.

        Returns:
            The summed loss, a float32 scalar.

        Raises:
            ValueError: if labels and logits differ in batch size or spatial shape.
        """
        label, sampled_for = target["label"][:, 0], target["task"]
        losses, trained = [], []
        for task, scores in zip(self.tasks, logits, strict=False):
            if scores[:, 0].shape != label.shape:
                raise ValueError(f"logits and labels must share a shape, got {scores[:, 0].shape} and {label.shape}")
            classes = task.target(label)
            voxel_losses = F.cross_entropy(scores.float(), classes, reduction="none")
            counts = self.counts_for(TASKS.index(task), label, sampled_for)
            # Several processes average their gradients: each divides by its share of all patches that count.
            processes = idist.get_world_size()
            number = torch.as_tensor(idist.all_reduce(counts.sum().float())) / processes
            # Of an empty selection cross_entropy itself would be NaN.
            total = (voxel_losses.flatten(1).mean(1) * counts).sum()
            if self.dice_weight:
                total = total + self.dice_weight * counts.sum() * self._dice_loss(scores, classes, counts)
            losses.append(total / number.clamp(min=1 / processes))
            trained.append(number > 0)
        self.task_losses = torch.stack(losses).detach().where(torch.stack(trained), torch.nan)
        return torch.stack(losses).sum()

    def _dice_loss(self, scores: torch.Tensor, classes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the Dice loss of the patches that count; of none it is 0."""
        one_hot = F.one_hot(classes, scores.shape[1]).movedim(-1, 1)
        kept = counts.reshape(-1, *[1] * (scores.ndim - 1))  # not picked by index, for which a GPU would wait
        return self.dice(scores.float().softmax(1) * kept, one_hot * kept)

    def counts_for(self, task: int, label: torch.Tensor, sampled_for: torch.Tensor) -> torch.Tensor:
        """
        Tell which patches count for a task.

        Args:
            task: index of the task.
            label: inner classes, shape ``(B, *spatial)``.
            sampled_for: index of the task each patch was sampled for, shape ``(B,)``.

        Returns:
            Boolean mask, shape ``(B,)``.
        """
        counts = sampled_for == task
        region = TASKS[task].sampled_in
        if self.transfer is None or region is None:
            return counts
        inside = torch.zeros_like(label, dtype=torch.bool)
        for cls in REGIONS[region]:
            inside |= label == cls
        least = int(self.transfer[task - 1] * label[0].numel())
        return counts | ((sampled_for < task) & (inside.flatten(1).sum(1) >= least))
