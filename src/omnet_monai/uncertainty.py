"""How sure the region probabilities are: a map of entropies, and one number for each region."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from omnet_monai.regions import BACKGROUND, REGIONS

__all__ = ["RegionEntropyd", "region_entropy", "region_uncertainty"]


class RegionEntropyd(MapTransform):
    """
    Put beside region probabilities ``(3, *spatial)`` the map of their entropy ``(1, *spatial)``, 0 outside the brain.

    Args:
        keys: keys of the probabilities, which stay.
        names: keys of the maps, one for each.
        image_key: key of the image, background 0, shape ``(C, *spatial)``.
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection, image_key: str = "image") -> None:
        super().__init__(keys)
        self.names = ensure_tuple(names)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the map of each key."""
        result = dict(data)
        for key, name in zip(self.key_iterator(result), self.names, strict=True):
            brain = (torch.as_tensor(result[self.image_key]) != BACKGROUND).any(0, keepdim=True)
            result[name] = region_entropy(result[key]) * brain.to(result[key].device)
        return result


def region_entropy(probs: torch.Tensor) -> torch.Tensor:
    """
    Average the binary entropies of the regions, voxel by voxel.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``, averaged over what they are to be sure
            against, such as mirrored passes.

    Returns:
        Entropy in bits, shape ``(1, *spatial)``: 0 where all three are 0 or 1, 1 where all three are one half.
    """
    entropy = torch.special.entr(probs) + torch.special.entr(1 - probs)
    return entropy.mean(0, keepdim=True) / torch.log(torch.tensor(2.0))


def region_uncertainty(probs: torch.Tensor, masks: torch.Tensor) -> dict[str, float]:
    """
    Sum up each region by one minus the Dice that its probabilities let expect of its mask.

    If the probabilities were right about how often they are right, the Dice of the mask with a truth drawn from them
    would be about ``2 * sum(probs * mask) / (sum(probs) + sum(mask))``. The probabilities of TC count inside WT's mask
    alone, those of ET inside TC's, as in fusion: elsewhere a network of separate tasks has no reason to keep them low.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``, not nested.
        masks: predicted regions, boolean, same shape, nested.

    Returns:
        ``uncertainty_WT``, ... in [0, 1]: 0 for a region that is sure everywhere, 1 for one that is nowhere though its
        probabilities are above 0; below one voxel's worth of probability and mask together, 0.
    """
    values, around = {}, torch.ones_like(masks[0])
    for region, prob, mask in zip(REGIONS, probs, masks, strict=True):
        total = float(prob[around].sum(dtype=torch.float64)) + int(mask.sum())
        shared = float(prob[mask].sum(dtype=torch.float64))
        values[f"uncertainty_{region}"] = 1 - 2 * shared / total if total >= 1 else 0.0
        around = mask
    return values
