"""Patches for each task, cut where the task looks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Randomizable, SpatialPad
from monai.utils import ensure_tuple_rep

from omnet_monai.regions import REGIONS, TASKS, tasks_named

__all__ = ["RandCropByTaskd"]

TRIALS = 50
"""How often a voxel is drawn in the hope of brain before all of the volume is read to find some."""


class RandCropByTaskd(Randomizable):
    """
    Cut patches for each task, each centered on a random voxel of the region that the task samples in: the brain, the
    whole tumor, the tumor core (MICCAI 2018 / TIP 2020 papers; reconstructed, the release has no sampler).

    A case without core gives its task-3 patches to task 2, a case without tumor all its patches to task 1: each
    patch carries in ``task`` the index of the task whose region it was really drawn from. Near a border the patch is
    shifted inwards; a volume smaller than a patch is padded with zeros at its far ends. Of an image mapped from a file,
    little more than the patches is read.

    Args:
        spatial_size: patch size in voxels, one entry per spatial dimension.
        num_samples: patches per task, one number for all tasks or one for each of the three.
        image_key: key of the image, background 0, shape ``(C, *spatial)``.
        label_key: key of the inner classes, shape ``(1, *spatial)``.
        tasks: names of the tasks to cut patches for, ``None`` for all three.
        margin: tissue to cut around each patch on either side, as a share of that side rounded down to voxels, for an
            augmentation that turns patches; zeros where the volume ends.

    Returns:
        A list of dictionaries of plain tensors, one per patch, with the keys ``image_key``, ``label_key`` and ``task``,
        grouped by the task they were asked for.

    Raises:
        ValueError: if ``num_samples`` is a sequence that does not hold one number per task, and for unknown tasks.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        num_samples: int | Sequence[int] = 2,
        image_key: str = "image",
        label_key: str = "label",
        tasks: Sequence[str] | None = None,
        margin: float = 0.0,
    ) -> None:
        self.margin = margin
        self.spatial_size = tuple(map(int, spatial_size))
        self.num_samples = ensure_tuple_rep(num_samples, len(TASKS))
        self.pad = SpatialPad(self.spatial_size, method="end")
        self.tasks = [TASKS.index(task) for task in tasks_named(tasks)]
        self.image_key = image_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Cut the patches of one case."""
        image, label = self._padded(data[self.image_key]), self._padded(data[self.label_key])
        regions = _sampled_regions(label)
        patches: list[dict[Hashable, Any]] = []
        for wanted in self.tasks:
            task = max(task for task in range(wanted + 1) if len(regions[task]) or not task)
            for _ in range(self.num_samples[wanted]):
                center = int(regions[task][self.R.randint(len(regions[task]))]) if task else self._in_brain(image)
                starts = self._starts_around(center, label.shape[1:])
                cut = {self.image_key: self._cut(image, starts), self.label_key: self._cut(label, starts)}
                patches.append(cut | {"task": task})
        return patches

    def _padded(self, volume: torch.Tensor) -> torch.Tensor:
        small = any(side < size for side, size in zip(volume.shape[1:], self.spatial_size, strict=True))
        volume = self.pad(volume) if small else volume
        return volume.as_tensor() if isinstance(volume, MetaTensor) else volume

    def _in_brain(self, image: torch.Tensor) -> int:
        """Draw a voxel of the brain: by trial, as a cropped volume is half brain, and else from all there are."""
        voxels = image.flatten(1)
        for _ in range(TRIALS):
            center = self.R.randint(voxels.shape[1])
            if voxels[:, center].any():
                return center
        brain = voxels.any(0).nonzero()[:, 0]
        return int(brain[self.R.randint(len(brain))]) if len(brain) else center

    def _starts_around(self, center: int, shape: Sequence[int]) -> list[int]:
        return [
            min(max(int(place) - side // 2, 0), size - side)
            for place, side, size in zip(np.unravel_index(center, shape), self.spatial_size, shape, strict=True)
        ]

    def _cut(self, volume: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
        """Copy the patch that starts there and its margin."""
        inside, missing = [slice(None)], list[int]()
        for start, side, size in zip(starts, self.spatial_size, volume.shape[1:], strict=True):
            extra = int(side * self.margin)
            first, last = start - extra, start + side + extra
            inside.append(slice(max(first, 0), min(last, size)))
            missing = [max(-first, 0), max(last - size, 0), *missing]  # the last axis comes first
        return F.pad(volume[tuple(inside)], missing) if any(missing) else volume[tuple(inside)].clone()


def _sampled_regions(label: torch.Tensor) -> list[np.ndarray]:
    """Flat indices of the voxels that each task samples in; none for the brain, which the label does not show."""
    classes = label[0].flatten().cpu().numpy()
    # Seen as integers, zeros are found in a tenth of the time that half precision takes.
    tumor = np.flatnonzero(classes.view(f"i{classes.itemsize}") != 0)  # the other regions are looked for in here alone
    found = classes[tumor]
    return [tumor[:0], *(tumor[np.isin(found, REGIONS[str(task.sampled_in)])] for task in TASKS[1:])]
