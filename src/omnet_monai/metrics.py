"""Scores of a label map against the truth, per region: pure functions of two masks and the size of a voxel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy import ndimage

from omnet_monai.regions import REGIONS

__all__ = [
    "IN_UNITS",
    "METRICS",
    "dice",
    "false_volume",
    "hausdorff95",
    "lesion_wise",
    "score_regions",
    "sensitivity",
    "specificity",
]

METRICS = {
    "dice": "Dice",
    "hd95": "HD95 (mm)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "lesion_dice": "lesion-wise Dice",
    "lesion_hd95": "lesion-wise HD95 (mm)",
    "false_ml": "false (ml)",
}
"""Every metric of a region, in the order of tables, and how it is written."""

IN_UNITS = ("hd95", "lesion_hd95", "false_ml")
"""Metrics in mm or ml, 0 at best; the others are shares, 1 at best."""

JOINING_DILATIONS = 3
"""Dilations, each by the 18 neighbors, after which lesions that touch count as one (BraTS 2023, gliomas)."""

MIN_LESION_VOLUME = 50.0
"""Volume in mm3 up to which a true lesion is not scored (BraTS 2023, gliomas)."""

LESION_PENALTY = 374.0
"""HD95 in mm of a missed lesion and of a false one (BraTS 2023)."""

NEIGHBORS_18 = ndimage.generate_binary_structure(3, 2)
NEIGHBORS_26 = ndimage.generate_binary_structure(3, 3)


def score_regions(
    pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float], voxel: float | None = None
) -> dict[str, float]:
    """
    Score a case by every metric in every region.

    Args:
        pred: predicted masks of WT, TC, ET, boolean, shape ``(3, H, W, D)``.
        truth: true masks, likewise.
        spacing: size of a voxel along each axis in mm.
        voxel: its volume in mm3, by default that of axes at right angles.

    Returns:
        ``dice_WT``, ``dice_TC``, ..., ``lesion_hd95_ET``, in the order of ``METRICS`` and ``REGIONS``.

    Raises:
        ValueError: if the masks differ in shape.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"masks must share a shape, got {tuple(pred.shape)} and {tuple(truth.shape)}")
    voxel = float(np.prod(spacing)) if voxel is None else voxel
    by_region = [_score(*masks, spacing, voxel) for masks in zip(pred, truth, strict=True)]
    return {
        f"{metric}_{region}": scores[metric]
        for metric in METRICS
        for region, scores in zip(REGIONS, by_region, strict=True)
    }


def dice(pred: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the Dice coefficient of two masks of one shape; 1 if both are empty, 0 if one is."""
    return float(compute_dice(pred[None, None], truth[None, None], ignore_empty=False))


def hausdorff95(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> float:
    """
    Return the 95th percentile of the distances from each mask's surface voxels to the other's, the larger of the two.

    Args:
        pred: boolean mask, shape ``(H, W, D)``.
        truth: boolean mask, same shape.
        spacing: size of a voxel along each axis in mm.

    Returns:
        Distance in mm; 0 if both masks are empty, the diagonal of the image if one is (373.13 for BraTS images).
    """
    if not (pred.any() and truth.any()):
        diagonal = float(np.linalg.norm(np.multiply(pred.shape, spacing)))
        return diagonal if pred.any() or truth.any() else 0.0
    masks = pred[None, None], truth[None, None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)  # MONAI's own call of its function
        # MONAI takes channel 0 for background unless told otherwise, and voxels for 1 mm.
        distance = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing))
    return float(distance)


def sensitivity(pred: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of the true mask that was predicted; of an empty one 1 if both are empty, else 0."""
    # Not MONAI's confusion matrix: it is NaN for an empty truth, and counts in float32.
    if not truth.any():
        return float(not pred.any())
    return float((pred & truth).sum()) / float(truth.sum())


def specificity(pred: torch.Tensor, truth: torch.Tensor) -> float:
    """
    Return the share of what is outside the true mask that was predicted so, air around the head included; where
    nothing is outside, 1 if the prediction leaves nothing outside either, else 0.
    """
    return sensitivity(~pred, ~truth)


def lesion_wise(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    """
    Return Dice and HD95 (mm) averaged over lesions instead of voxels, as BraTS 2023 defined them for gliomas.

    True components (26-connected) are one lesion if they touch once dilated three times (18 neighbors). A predicted
    component matches every lesion whose own dilated mask it overlaps, and a lesion is scored against all its matches
    together. Lesions of at most 50 mm3 are then left out: what matches only such a lesion is neither hit nor false
    alarm. A missed lesion and a predicted component without a match, of any size, count Dice 0 and HD95 374 mm.
    Distances are between surface voxels as in :func:`hausdorff95`; the challenge's own code weighs surface patches.

    Args:
        pred: boolean mask, shape ``(H, W, D)``.
        truth: boolean mask, same shape.
        spacing: size of a voxel along each axis in mm; dilation counts voxels whatever their size.

    Returns:
        Dice and HD95; 1 and 0 if there is nothing to find and nothing was found.
    """
    pred, truth = _crop(pred, truth)
    lesions, number = ndimage.label(_dilate(truth.numpy()), NEIGHBORS_26)
    lesions[~truth.numpy()] = 0
    found, false_alarms = ndimage.label(pred.numpy(), NEIGHBORS_26)
    matched: set[int] = set()
    scores: list[tuple[float, float]] = []
    for lesion in range(1, number + 1):
        mask = lesions == lesion
        matches = np.setdiff1d(found[_dilate(mask)], [0])
        matched.update(matches.tolist())
        if round(float(mask.sum() * np.prod(spacing)), 3) > MIN_LESION_VOLUME:  # an affine's spacing is rounded
            pair = torch.from_numpy(np.isin(found, matches)), torch.from_numpy(mask)
            distance = hausdorff95(*pair, spacing) if len(matches) else LESION_PENALTY
            scores.append((dice(*pair), distance))
    scores += [(0.0, LESION_PENALTY)] * (false_alarms - len(matched))
    means = np.mean(scores or [(1.0, 0.0)], axis=0)
    return float(means[0]), float(means[1])


def false_volume(pred: torch.Tensor, truth: torch.Tensor, voxel: float) -> float:
    """
    Return the volume in ml of the predicted components (26-connected) that share no voxel with the truth: what was
    found away from any lesion, where Dice also counts what was drawn too wide.

    Args:
        pred: boolean mask, shape ``(H, W, D)``.
        truth: boolean mask, same shape.
        voxel: volume of a voxel in mm3.
    """
    found, number = ndimage.label(pred.numpy(), NEIGHBORS_26)
    sizes = np.bincount(found.ravel(), minlength=number + 1)
    sizes[np.unique(found[truth.numpy()])] = 0
    return float(sizes[1:].sum() * voxel / 1000)


def _score(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float], voxel: float) -> dict[str, float]:
    lesion_dice, lesion_hd95 = lesion_wise(pred, truth, spacing)
    return {
        "dice": dice(pred, truth),
        "hd95": hausdorff95(pred, truth, spacing),
        "sensitivity": sensitivity(pred, truth),
        "specificity": specificity(pred, truth),
        "lesion_dice": lesion_dice,
        "lesion_hd95": lesion_hd95,
        "false_ml": false_volume(pred, truth, voxel),
    }


def _crop(pred: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut both masks to the box that holds them and every dilation: the same result in a fraction of the time."""
    voxels = (pred | truth).nonzero()
    if len(voxels) == 0:
        return pred[:1, :1, :1], truth[:1, :1, :1]
    starts = (voxels.amin(0) - JOINING_DILATIONS).clamp(min=0).tolist()
    stops = (voxels.amax(0) + JOINING_DILATIONS + 1).tolist()
    box = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    return pred[box], truth[box]


def _dilate(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(mask, NEIGHBORS_18, iterations=JOINING_DILATIONS)
