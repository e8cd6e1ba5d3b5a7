"""How sure the region probabilities are: a map of the chance of error, and one number for each region."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from omnet_monai.regions import REGIONS, classes_from_codes, regions_from_classes

__all__ = ["ChanceOfErrord", "chance_of_error", "region_uncertainty"]


class ChanceOfErrord(MapTransform):
    """
    Put beside region probabilities ``(3, *spatial)`` the map of the chance that a label map is wrong there,
    ``(1, *spatial)``.

    Args:
        keys: keys of the probabilities.
        names: keys of the maps, one for each.
        label_key: key of the label map, on the grid of the probabilities, shape ``(1, *spatial)``.
        scheme: label scheme of its codes.
    """

    def __init__(
        self, keys: KeysCollection, names: KeysCollection, label_key: str = "pred", scheme: str = "brats2023"
    ) -> None:
        super().__init__(keys)
        self.names = ensure_tuple(names)
        self.label_key = label_key
        self.scheme = scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the map of each key."""
        result = dict(data)
        masks = regions_from_classes(classes_from_codes(result[self.label_key], self.scheme))
        for key, name in zip(self.key_iterator(result), self.names, strict=True):
            result[name] = chance_of_error(result[key], masks)
        return result


def chance_of_error(probs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Tell how likely each voxel is of another class than its label, by the probabilities of the regions (ours).

    From WT to ET, each region counts inside the mask of the one around it alone: a voxel of edema is right if it is WT
    and not TC, whatever the probability of ET says there. The masks are those of the finished label map, so that tumor
    that a threshold, or the removal of a cluster, leaves out against its probability has a high chance of error.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``, averaged over what they are to be sure
            against, such as mirrored passes.
        masks: the regions of the label map, boolean, same shape, nested.

    Returns:
        Chance of error in [0, 1], shape ``(1, *spatial)``; 0 where each region that counts is as sure as can be.
    """
    right = torch.ones_like(probs[0])
    inside = torch.ones_like(masks[0])
    for prob, mask in zip(probs, masks, strict=True):
        right = torch.where(inside, right * torch.where(mask, prob, 1 - prob), right)
        inside = mask
    return 1 - right[None]


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
