"""Refine region probabilities on the preprocessed grid, before they become a label map (TIP 2020; reconstructed)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

__all__ = ["RemoveSmallClustersd", "remove_small_clusters"]


class RemoveSmallClustersd(MapTransform):
    """
    Clear the region probabilities of small clusters of tumor: scattered false tumor far from the lesion.

    The limit depends on the largest cluster, which MONAI's ``RemoveSmallObjects`` does not know.

    Args:
        keys: keys of the region probabilities WT, TC, ET, each a ``MetaTensor`` whose affine gives the voxels' size,
            shape ``(3, *spatial)``; without an affine a voxel is 1 mm3.
        max_volume: clusters of at least this volume in mm3 stay; 0 keeps every cluster.
        max_share: so do clusters of at least this share of the largest one's volume, in [0, 1].
        threshold: tumor is where the probability of WT exceeds this.
    """

    def __init__(
        self, keys: KeysCollection, max_volume: float = 2000.0, max_share: float = 0.1, threshold: float = 0.5
    ) -> None:
        super().__init__(keys)
        self.max_volume = max_volume
        self.max_share = max_share
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clear each key's small clusters."""
        result = dict(data)
        for key in self.key_iterator(result):
            probs = result[key]
            voxel = float(probs.pixdim.prod()) if isinstance(probs, MetaTensor) else 1.0
            result[key] = remove_small_clusters(probs, self.max_volume / voxel, self.max_share, self.threshold)
        return result


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
    whole = (probs[0] > threshold).cpu().numpy()
    clusters, number = ndimage.label(whole, np.ones([3] * whole.ndim))
    if number < 2:
        return probs
    sizes = np.bincount(clusters.ravel())
    sizes[0] = sizes[1:].max()  # background stays as it is
    small = sizes < min(max_size, max_share * sizes.max())
    return probs.masked_fill(torch.as_tensor(small[clusters], device=probs.device), 0)
