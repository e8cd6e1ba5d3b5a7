"""Refine region probabilities on the preprocessed grid, before they become a label map (TIP 2020; reconstructed)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage

from omnet_monai.measures import voxel_volume
from omnet_monai.regions import ENHANCING, REGIONS, classes_from_regions

__all__ = [
    "FillCoreHolesd",
    "RefineRegionsd",
    "RelabelSmallEnhancingd",
    "RemoveSmallClustersd",
    "RemoveUnsureClustersd",
    "remove_small_clusters",
    "remove_unsure_clusters",
]

_WHOLE, _CORE, _ENHANCING = range(len(REGIONS))


class RefineRegionsd(MapTransform):
    """
    A step of refinement that can be switched off. ``keys`` are those of the region probabilities, each a ``MetaTensor``
    whose affine gives the voxels' size, shape ``(3, *spatial)``; without an affine a voxel is 1 mm3. A region is where
    its probability exceeds 0.5: other thresholds are moved there first, by ``MoveThresholdsd``. Probabilities change in
    place, as copying those of a brain takes longer than most steps.
    """

    def __init__(self, keys: KeysCollection, enabled: bool = True) -> None:
        super().__init__(keys)
        if not isinstance(enabled, bool):
            raise ValueError(f"enabled must be True or False, capitalized on the command line, got {enabled!r}")
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Refine each key's probabilities in place."""
        result = dict(data)
        for key in self.key_iterator(result) if self.enabled else ():
            self.refine(result[key], voxel_volume(result[key]), result)
        return result

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Refine probabilities in place; a voxel has the volume ``voxel`` in mm3."""
        raise NotImplementedError


class RemoveUnsureClustersd(RefineRegionsd):
    """
    Clear the region probabilities of 26-connected clusters of tumor that are certain nowhere (ours). A low threshold
    finds the whole of a lesion, and takes doubtful cortex for tumor; two thresholds of that kind are called hysteresis.

    Args:
        keys: keys of the region probabilities WT, TC, ET, shape ``(3, *spatial)``.
        min_peak: clusters in which the probability of WT is nowhere above this go, whatever their size; in [0, 1).
        threshold: tumor is where the probability of WT exceeds this.
        incomplete_peak: a lower ``min_peak`` for a case that lacks a sequence, of which a network is less sure; by
            default the same.
        image_key: key of the normalized sequences, shape ``(C, *spatial)``: one that is missing, or of one value, is 0
            throughout. Without it a case counts as complete.

    Raises:
        ValueError: if ``min_peak`` or ``incomplete_peak`` is not in [0, 1).
    """

    def __init__(
        self,
        keys: KeysCollection,
        min_peak: float = 0.0,
        threshold: float = 0.5,
        incomplete_peak: float | None = None,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.threshold = threshold
        for name, peak in {"min_peak": min_peak, "incomplete_peak": incomplete_peak}.items():
            if peak is not None and not 0 <= peak < 1:
                raise ValueError(f"{name} must be in [0, 1), got {peak}")
        self.min_peak = min_peak
        self.incomplete_peak = min_peak if incomplete_peak is None else min(min_peak, incomplete_peak)
        self.image_key = image_key

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Clear the unsure clusters."""
        remove_unsure_clusters(probs, self._limit(data), self.threshold)

    def _limit(self, data: Mapping[Hashable, Any]) -> float:
        there = (any(sequence.aminmax()) for sequence in data.get(self.image_key, ()))  # in a fifth of any's time
        return self.min_peak if all(there) else self.incomplete_peak


class RemoveSmallClustersd(RefineRegionsd):
    """
    Clear the probabilities of a region, and of those inside it, in its small clusters: scattered false tumor far from
    the lesion, or specks of core and enhancing tumor in the edema, which become edema or non-enhancing core. The limit
    depends on the largest cluster, which MONAI's ``RemoveSmallObjects`` does not know.

    Args:
        keys: keys of the region probabilities WT, TC, ET, ``(3, *spatial)``; a ``MetaTensor`` tells its voxels' size.
        max_volume: clusters of at least this volume in mm3 stay; 0 keeps every cluster.
        max_share: so do clusters of at least this share of the largest one's volume, in [0, 1].
        region: "WT", "TC" or "ET".

    Raises:
        ValueError: for another region.
    """

    def __init__(
        self, keys: KeysCollection, max_volume: float = 2000.0, max_share: float = 0.1, region: str = "WT"
    ) -> None:
        super().__init__(keys, enabled=max_volume > 0)
        if region not in REGIONS:
            raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
        self.max_volume = max_volume
        self.max_share = max_share
        self.region = region

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Clear the small clusters."""
        remove_small_clusters(probs, self.max_volume / voxel, self.max_share, self.region)


class FillCoreHolesd(RefineRegionsd):
    """
    Fill holes of the core inside its own rim (ours): a window in the middle of a large necrosis sees no rim to know it
    by. The probability of TC becomes 1 where WT is but TC is not, and within one of the planes of the grid no path from
    side to side leads out of TC. Such a hole may be open across that plane: its walls are where windows end.

    Args:
        keys: keys of the region probabilities WT, TC, ET, as for :class:`RemoveSmallClustersd`.
        enabled: whether to fill anything.

    Raises:
        ValueError: if ``enabled`` is no truth value.
    """

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Fill the holes."""
        whole, core = (probs[: _CORE + 1] > 0.5).cpu().numpy()
        box = _box(core & whole)
        whole, core = whole[box], core[box]
        holes = _enclosed_in_a_plane(core & whole) & whole & ~core
        probs[_CORE][box].masked_fill_(torch.as_tensor(holes, device=probs.device), 1)


class RelabelSmallEnhancingd(RefineRegionsd):
    """
    Clear the probability of ET where all enhancing tumor together is small, which leaves non-enhancing core: in a case
    without any, a few false voxels cost the whole Dice. Winners of BraTS do so; it is not the paper's.

    Args:
        keys: keys of the region probabilities WT, TC, ET, as for :class:`RemoveSmallClustersd`.
        max_volume: enhancing tumor of at least this volume in mm3 stays; 0 relabels none.
    """

    def __init__(self, keys: KeysCollection, max_volume: float = 200.0) -> None:
        super().__init__(keys, enabled=max_volume > 0)
        self.max_volume = max_volume

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Clear small enhancing tumor."""
        enhancing = int((classes_from_regions(probs) == ENHANCING).sum())
        if enhancing * voxel < self.max_volume:
            probs[_ENHANCING] = 0


def remove_unsure_clusters(probs: torch.Tensor, min_peak: float, threshold: float = 0.5) -> None:
    """
    Set all probabilities to 0, in place, in each 26-connected cluster of WT where its own is nowhere above
    ``min_peak``.

    Args:
        probs: probabilities of WT and maybe of further regions in [0, 1], shape ``(R, *spatial)``.
        min_peak: what the probability of WT must exceed somewhere.
        threshold: WT is where its probability exceeds this.
    """
    box, clusters, number = _clusters(probs[: _WHOLE + 1] > threshold)
    whole, values = clusters > 0, probs[_WHOLE][box].cpu().numpy()
    peaks = np.zeros(number + 1, values.dtype)
    np.maximum.at(peaks, clusters[whole], values[whole])
    unsure = (peaks <= min_peak) & (np.arange(number + 1) > 0)  # background stays as it is
    _clear(probs, box, clusters, unsure)


def remove_small_clusters(probs: torch.Tensor, max_size: float, max_share: float = 0.1, region: str = "WT") -> None:
    """
    Set the probabilities of a region, and of those inside it, to 0, in place, in each 26-connected cluster of it that
    is smaller than ``max_size`` and smaller than ``max_share`` of the largest cluster. It is where its probability, and
    those of the regions around it, exceed 0.5.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``.
        max_size: clusters of at least so many voxels stay.
        max_share: so do clusters of at least this share of the largest one's voxels.
        region: "WT", "TC" or "ET".
    """
    first = list(REGIONS).index(region)
    box, clusters, number = _clusters(probs[: first + 1] > 0.5)
    sizes = np.bincount(clusters.ravel(), minlength=number + 1)
    sizes[0] = sizes[1:].max(initial=0)  # background stays as it is
    small = sizes < min(max_size, max_share * sizes[0])
    _clear(probs[first:], box, clusters, small)


def _clusters(regions: torch.Tensor) -> tuple[tuple[slice, ...], np.ndarray, int]:
    """Find the box of what is in all regions, the numbers of its 26-connected clusters there, and how many they are."""
    mask = reduce(np.logical_and, regions.cpu().numpy())
    box = _box(mask)
    return box, *ndimage.label(mask[box], np.ones([3] * mask.ndim))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Find the box that holds a mask: a tumor is a small part of a brain, and what is outside need not be looked at."""
    axes = range(mask.ndim)
    planes = [np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(found[0], found[-1] + 1) if found.size else slice(0) for found in planes)


def _clear(probs: torch.Tensor, box: tuple[slice, ...], clusters: np.ndarray, which: np.ndarray) -> None:
    """Set probabilities within a box to 0 in some of its numbered clusters."""
    if which.any():
        probs[(slice(None), *box)].masked_fill_(torch.as_tensor(which[clusters], device=probs.device), 0)


def _enclosed_in_a_plane(mask: np.ndarray) -> np.ndarray:
    """Add to a mask what it encloses within a plane of two axes, whatever lies before and behind that plane."""
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    planes = [np.indices(cross.shape)[axis] == 1 for axis in range(mask.ndim)] if mask.ndim > 2 else [True]
    return np.logical_or.reduce([ndimage.binary_fill_holes(mask, cross & plane) for plane in planes])
