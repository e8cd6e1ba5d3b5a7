"""Refine region probabilities on the preprocessed grid, before they become a label map (TIP 2020; reconstructed)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from omnet_monai.regions import EDEMA, ENHANCING, REGIONS, classes_from_regions

__all__ = [
    "FillCoreHolesd",
    "RelabelEdemad",
    "RelabelSmallEnhancingd",
    "RemoveSmallClustersd",
    "relabel_edema",
    "remove_small_clusters",
]

_WHOLE, _CORE, _ENHANCING = range(len(REGIONS))


class _RefineRegionsd(MapTransform):
    """
    A step of refinement that can be switched off. ``keys`` are those of the region probabilities, each a ``MetaTensor``
    whose affine gives the voxels' size, shape ``(3, *spatial)``; without an affine a voxel is 1 mm3.
    """

    def __init__(self, keys: KeysCollection, threshold: float, enabled: bool = True) -> None:
        super().__init__(keys)
        if not isinstance(enabled, bool):
            raise ValueError(f"enabled must be True or False, capitalized on the command line, got {enabled!r}")
        self.threshold = threshold
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's probabilities by refined ones."""
        result = dict(data)
        for key in self.key_iterator(result) if self.enabled else ():
            probs = result[key]
            voxel = float(probs.pixdim.prod()) if isinstance(probs, MetaTensor) else 1.0
            result[key] = self.refine(probs, voxel, result)
        return result

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Return refined probabilities, not changing the given ones; a voxel has the volume ``voxel`` in mm3."""
        raise NotImplementedError


class RemoveSmallClustersd(_RefineRegionsd):
    """
    Clear the region probabilities of small clusters of tumor: scattered false tumor far from the lesion. The limit
    depends on the largest cluster, which MONAI's ``RemoveSmallObjects`` does not know.

    Args:
        keys: keys of the region probabilities WT, TC, ET, ``(3, *spatial)``; a ``MetaTensor`` tells its voxels' size.
        max_volume: clusters of at least this volume in mm3 stay; 0 keeps every cluster.
        max_share: so do clusters of at least this share of the largest one's volume, in [0, 1].
        threshold: tumor is where the probability of WT exceeds this.
    """

    def __init__(
        self, keys: KeysCollection, max_volume: float = 2000.0, max_share: float = 0.1, threshold: float = 0.5
    ) -> None:
        super().__init__(keys, threshold)
        self.max_volume = max_volume
        self.max_share = max_share

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Clear the small clusters."""
        return remove_small_clusters(probs, self.max_volume / voxel, self.max_share, self.threshold)


class FillCoreHolesd(_RefineRegionsd):
    """
    Fill holes of the core inside its own rim (ours): a window in the middle of a large necrosis sees no rim to know it
    by. The probability of TC becomes 1 where WT is but TC is not, and within one of the planes of the grid no path from
    side to side leads out of TC. Such a hole may be open across that plane: its walls are where windows end.

    Args:
        keys: keys of the region probabilities WT, TC, ET, as for :class:`RemoveSmallClustersd`.
        enabled: whether to fill anything.
        threshold: a region is where its probability exceeds this.

    Raises:
        ValueError: if ``enabled`` is no truth value.
    """

    def __init__(self, keys: KeysCollection, enabled: bool = True, threshold: float = 0.5) -> None:
        super().__init__(keys, threshold, enabled)

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Fill the holes."""
        whole, core = (probs[[_WHOLE, _CORE]] > self.threshold).cpu().numpy()
        holes = torch.as_tensor(_enclosed_in_a_plane(core & whole) & whole & ~core, device=probs.device)
        filled = probs.clone()
        filled[_CORE, holes] = 1
        return filled


class RelabelEdemad(_RefineRegionsd):
    """
    Turn part of the edema into non-enhancing core, as :func:`relabel_edema` does, where all parts of the core are
    small: the K-means step of TIP 2020, reconstructed with its conditions.

    Args:
        keys: keys of the region probabilities WT, TC, ET, as for :class:`RemoveSmallClustersd`.
        image_key: key of the normalized sequences on the same grid, shape ``(4, *spatial)``.
        enabled: whether to relabel anything.
        max_enhancing_share: enhancing tumor must be below this share of the whole tumor, in [0, 1].
        max_non_enhancing_share: so must non-enhancing core be below this share.
        max_enhancing_volume: and enhancing tumor below this volume in mm3.
        threshold: a region is where its probability exceeds this.

    Raises:
        ValueError: if ``enabled`` is no truth value, or spatial shapes differ.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        enabled: bool = True,
        max_enhancing_share: float = 0.1,
        max_non_enhancing_share: float = 0.05,
        max_enhancing_volume: float = 1000.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(keys, threshold, enabled)
        self.image_key = image_key
        self.max_enhancing_share = max_enhancing_share
        self.max_non_enhancing_share = max_non_enhancing_share
        self.max_enhancing_volume = max_enhancing_volume

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Relabel edema if all conditions hold."""
        classes = classes_from_regions(probs, self.threshold)
        _, non_enhancing, edema, enhancing = torch.bincount(classes.flatten(), minlength=4).tolist()
        whole = non_enhancing + edema + enhancing
        lacks_core = non_enhancing < self.max_non_enhancing_share * whole
        lacks_core &= enhancing < min(self.max_enhancing_share * whole, self.max_enhancing_volume / voxel)
        return relabel_edema(probs, data[self.image_key], self.threshold) if lacks_core else probs


class RelabelSmallEnhancingd(_RefineRegionsd):
    """
    Clear the probability of ET where all enhancing tumor together is small, which leaves non-enhancing core: in a case
    without any, a few false voxels cost the whole Dice. Winners of BraTS do so; it is not the paper's.

    Args:
        keys: keys of the region probabilities WT, TC, ET, as for :class:`RemoveSmallClustersd`.
        max_volume: enhancing tumor of at least this volume in mm3 stays; 0 relabels none.
        threshold: a region is where its probability exceeds this.
    """

    def __init__(self, keys: KeysCollection, max_volume: float = 200.0, threshold: float = 0.5) -> None:
        super().__init__(keys, threshold)
        self.max_volume = max_volume

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Clear small enhancing tumor."""
        enhancing = int((classes_from_regions(probs, self.threshold) == ENHANCING).sum())
        if enhancing * voxel >= self.max_volume:
            return probs
        return probs.index_fill(0, torch.tensor([_ENHANCING], device=probs.device), 0)


def remove_small_clusters(
    probs: torch.Tensor, max_size: float, max_share: float = 0.1, threshold: float = 0.5
) -> torch.Tensor:
    """
    Set all probabilities to 0 in each 26-connected cluster of WT that is smaller than ``max_size`` and smaller than
    ``max_share`` of the largest cluster.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``.
        max_size: clusters of at least so many voxels stay.
        max_share: so do clusters of at least this share of the largest one's voxels.
        threshold: WT is where its probability exceeds this.

    Returns:
        Probabilities, shape ``(3, *spatial)``; the given tensor itself is left as it was.
    """
    whole = (probs[_WHOLE] > threshold).cpu().numpy()
    clusters, number = ndimage.label(whole, np.ones([3] * whole.ndim))
    if number < 2:
        return probs
    sizes = np.bincount(clusters.ravel())
    sizes[0] = sizes[1:].max()  # background stays as it is
    small = sizes < min(max_size, max_share * sizes.max())
    return probs.masked_fill(torch.as_tensor(small[clusters], device=probs.device), 0)


def relabel_edema(probs: torch.Tensor, image: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """
    Split the predicted edema into two groups by K-means on its intensities, and turn the likelier one into
    non-enhancing core: probability of TC 1, of ET 0.

    The likelier group has the larger mean of ``max(TC - ET, 0)``, which stands in for the probability of the class. The
    groups start at the mean intensities of the voxels above and not above the mean of that figure. Both are ours.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``.
        image: normalized sequences, shape ``(C, *spatial)``.
        threshold: a region is where its probability exceeds this.

    Returns:
        Probabilities, likewise; the given tensor itself is left as it was.

    Raises:
        ValueError: if image and probabilities differ in spatial shape.
    """
    if image.shape[1:] != probs.shape[1:]:
        case = image.meta.get("case", "unknown") if isinstance(image, MetaTensor) else "unknown"
        shapes = f"{tuple(image.shape[1:])} and {tuple(probs.shape[1:])}"
        raise ValueError(f"case {case}: image and probabilities must share a spatial shape, got {shapes}")
    edema = convert_to_tensor(classes_from_regions(probs, threshold)[0] == EDEMA, track_meta=False)
    values = convert_to_tensor(image, track_meta=False)[:, edema.to(image.device)].T.double().cpu().numpy()
    likely = (probs[_CORE] - probs[_ENHANCING]).clamp(min=0)[edema].double().cpu().numpy()
    if not likely.size or np.ptp(likely) == 0:
        return probs
    above = likely > likely.mean()
    starts = np.stack([values[~above].mean(0), values[above].mean(0)])
    if np.array_equal(*starts):  # one group
        return probs
    _, group = kmeans2(values, starts, iter=100, minit="matrix", missing="raise")  # more steps than it takes
    chosen = group == np.argmax([likely[group == k].mean() for k in range(2)])
    relabeled = torch.zeros_like(edema).masked_scatter(edema, torch.as_tensor(chosen, device=edema.device))
    result = probs.clone()
    result[_CORE, relabeled], result[_ENHANCING, relabeled] = 1, 0
    return result


def _enclosed_in_a_plane(mask: np.ndarray) -> np.ndarray:
    """Add to a mask what it encloses within a plane of two axes, whatever lies before and behind that plane."""
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    planes = [np.indices(cross.shape)[axis] == 1 for axis in range(mask.ndim)] if mask.ndim > 2 else [True]
    filled = mask.copy()
    for box in ndimage.find_objects(mask.astype(np.uint8)):  # the one box that holds it all, if there is anything
        filled[box] = np.logical_or.reduce([ndimage.binary_fill_holes(mask[box], cross & plane) for plane in planes])
    return filled
