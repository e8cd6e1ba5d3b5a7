"""Three networks of one task each, coarse to fine: what one pass of OM-Net is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Pool
from torch import nn

from omnet_monai.networks.nets import OMNet
from omnet_monai.regions import REGIONS, tasks_named

__all__ = ["ModelCascade"]


class ModelCascade(nn.Module):
    """
    Separate networks of one task each, coarse to fine: the cascade that OM-Net is compared with in TIP 2020, there
    called MC2 (two tasks) and MC3. Each network is trained by itself; here they are evaluated together.

    Each later network counts only where the earlier ones found the region that it refines, dilated: the refined one
    gives all three regions inside WT, the precise one ET inside TC. That the refined network gives WT too follows from
    the paper's table, in which MC2 and MC1 differ in WT, and MC3 and MC2 in ET alone. The dilation is ours, and so is
    that it is taken window by window: what a neighboring window found is not seen.

    Args:
        dilation: number of voxels, along each axis, by which a region grows before it limits the next network.
        skip: run a later network only on the windows of a batch in which its region was found. The result is the same
            up to rounding; the paper counts every network on every window.
        thresholds: WT, TC and ET are where their probabilities exceed these.
        tasks: names of the tasks, ``None`` for all three.
        spatial_dims: number of spatial dimensions, 2 or 3.
        network: further arguments of each :class:`OMNet`.

    Raises:
        ValueError: if ``dilation`` is negative, ``skip`` no truth value, or an argument unfit for :class:`OMNet`.
    """

    def __init__(
        self,
        dilation: int = 5,
        skip: bool = False,
        thresholds: Sequence[float] = (0.5, 0.5, 0.5),
        tasks: Sequence[str] | None = None,
        spatial_dims: int = 3,
        **network: Any,
    ) -> None:
        super().__init__()
        if dilation < 0 or not isinstance(skip, bool):
            raise ValueError(f"dilation must be 0 or more and skip True or False, got {dilation} and {skip!r}")
        own, regions = tasks_named(tasks), list(REGIONS)
        self.networks = nn.ModuleList(OMNet(spatial_dims, tasks=[task.name], **network) for task in own)
        self.grow = Pool[Pool.MAX, spatial_dims](kernel_size=3, stride=1, padding=1)  # by a voxel
        self.dilation = dilation
        self.inside = [regions.index(task.sampled_in) if task.sampled_in else 0 for task in own]
        # The first region that a network gives, as all that follow, is one that its classes make up.
        self.first = [[set(REGIONS[r]) <= set(task.classes) for r in regions].index(True) for task in own]
        self.skip = skip
        self.thresholds = thresholds

    def forward(self, x: torch.Tensor, num_tasks: int = 3) -> torch.Tensor:
        """
        Args:
            x: normalized sequences, shape ``(B, in_channels, *spatial)``.
            num_tasks: not looked at; a trainer gives it, and is refused.

        Returns:
            Probabilities of WT, TC and ET, float32, not nested, shape ``(B, 3, *spatial)``.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError("the networks of a cascade must be trained one by one, got a cascade in training mode")
        regions = torch.zeros(1)
        for stage, network in enumerate(self.networks):
            if stage == 0:
                regions = network(x)
            else:
                inside, first = self.inside[stage], self.first[stage]
                found = (regions[:, inside : inside + 1] > self.thresholds[inside]).float()  # (B, 1, *spatial)
                for _ in range(self.dilation):
                    found = self.grow(found)
                windows = found.flatten(1).amax(1) >= float(self.skip)  # (B,)
                limited = torch.zeros_like(regions)
                if windows.any():
                    limited[windows] = network(x[windows]) * found[windows]
                regions = torch.cat([regions[:, :first], limited[:, first:]], dim=1)
        return regions
