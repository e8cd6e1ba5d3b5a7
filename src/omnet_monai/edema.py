"""Turn part of the edema into non-enhancing core by K-means, as TIP 2020 does (reconstructed)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from scipy.cluster.vq import kmeans2

from omnet_monai.postprocessing import RefineRegionsd
from omnet_monai.regions import EDEMA, REGIONS, classes_from_regions

__all__ = ["RelabelEdemad", "relabel_edema"]

_, _CORE, _ENHANCING = range(len(REGIONS))  # channels


class RelabelEdemad(RefineRegionsd):
    """
    Turn part of the edema into non-enhancing core, as :func:`relabel_edema` does, where all parts of the core are
    small: the K-means step of TIP 2020, reconstructed with its conditions.

    Args:
        keys: keys of the region probabilities WT, TC, ET, shape ``(3, *spatial)``.
        image_key: key of the normalized sequences on the same grid, shape ``(4, *spatial)``.
        enabled: whether to relabel anything.
        max_enhancing_share: enhancing tumor must be below this share of the whole tumor, in [0, 1].
        max_non_enhancing_share: so must non-enhancing core be below this share.
        max_enhancing_volume: and enhancing tumor below this volume in mm3.

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
    ) -> None:
        super().__init__(keys, enabled)
        self.image_key = image_key
        self.max_enhancing_share = max_enhancing_share
        self.max_non_enhancing_share = max_non_enhancing_share
        self.max_enhancing_volume = max_enhancing_volume

    def refine(self, probs: torch.Tensor, voxel: float, data: Mapping[Hashable, Any]) -> None:
        """Relabel edema if all conditions hold."""
        classes = classes_from_regions(probs)
        _, non_enhancing, edema, enhancing = torch.bincount(classes.flatten(), minlength=4).tolist()
        whole = non_enhancing + edema + enhancing
        lacks_core = non_enhancing < self.max_non_enhancing_share * whole
        lacks_core &= enhancing < min(self.max_enhancing_share * whole, self.max_enhancing_volume / voxel)
        if lacks_core:
            relabel_edema(probs, data[self.image_key])


def relabel_edema(probs: torch.Tensor, image: torch.Tensor) -> None:
    """
    Split the predicted edema into two groups by K-means on its intensities, and turn the likelier one, in place, into
    non-enhancing core: probability of TC 1, of ET 0.

    The likelier group has the larger mean of ``max(TC - ET, 0)``, which stands in for the probability of the class. The
    groups start at the mean intensities of the voxels above and not above the mean of that figure. Both are ours.

    Args:
        probs: probabilities of WT, TC, ET in [0, 1], shape ``(3, *spatial)``.
        image: normalized sequences, shape ``(C, *spatial)``.

    Raises:
        ValueError: if image and probabilities differ in spatial shape.
    """
    if image.shape[1:] != probs.shape[1:]:
        case = image.meta.get("case", "unknown") if isinstance(image, MetaTensor) else "unknown"
        shapes = f"{tuple(image.shape[1:])} and {tuple(probs.shape[1:])}"
        raise ValueError(f"case {case}: image and probabilities must share a spatial shape, got {shapes}")
    edema = convert_to_tensor(classes_from_regions(probs)[0] == EDEMA, track_meta=False)
    values = convert_to_tensor(image, track_meta=False)[:, edema.to(image.device)].T.double().cpu().numpy()
    likely = (probs[_CORE] - probs[_ENHANCING]).clamp(min=0)[edema].double().cpu().numpy()
    if not likely.size or np.ptp(likely) == 0:
        return
    above = likely > likely.mean()
    starts = np.stack([values[~above].mean(0), values[above].mean(0)])
    if np.array_equal(*starts):  # one group
        return
    _, group = kmeans2(values, starts, iter=100, minit="matrix", missing="raise")  # more steps than it takes
    chosen = group == np.argmax([likely[group == k].mean() for k in range(2)])
    relabeled = torch.zeros_like(edema).masked_scatter(edema, torch.as_tensor(chosen, device=edema.device))
    probs[_CORE, relabeled], probs[_ENHANCING, relabeled] = 1, 0
