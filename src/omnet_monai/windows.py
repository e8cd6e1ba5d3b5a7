"""Windows that are placed where something is to be segmented, instead of on a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

__all__ = ["place_windows", "run_placed"]

LEAST_WEIGHT = 1e-3
"""Of what was found before, beside windows' own: that of MONAI's gaussian for the outermost voxels of a window."""


def run_placed(
    inferer: SlidingWindowInferer,
    network: Callable[..., Any],
    image: torch.Tensor,
    found: torch.Tensor,
    wanted: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """
    Run a network on windows that hold what is wanted, and blend them with each other and with what was found before.

    Args:
        inferer: whose windows they are, by size, overlap, number at once and way of blending.
        network: what runs on a batch of windows; it returns one tensor.
        image: shape ``(C, *spatial)``, no side shorter than a window's.
        found: result there is already, shape ``(regions, *spatial)``.
        wanted: mask, shape ``spatial``.

    Returns:
        The result, of the shape of ``found``; far from any window it is ``found``.
    """
    size = fall_back_tuple(inferer.roi_size, image.shape[1:])
    weight = compute_importance_map(size, inferer.mode, inferer.sigma_scale, found.device, found.dtype)
    total, weights = found * LEAST_WEIGHT, torch.full_like(found[:1], LEAST_WEIGHT)
    places = place_windows(wanted, size, inferer.overlap)
    for first in range(0, len(places), inferer.sw_batch_size):
        some = places[first : first + inferer.sw_batch_size]
        windows = torch.stack([image[:, *place] for place in some])
        results: Any = inferer(windows, network, *args, **kwargs)  # of each window, as it is an image of one
        for place, result in zip(some, results.to(found.device), strict=True):
            total[:, *place] += weight * result
            weights[:, *place] += weight
    return total / weights


def place_windows(
    wanted: torch.Tensor, size: Sequence[int], overlap: float | Sequence[float]
) -> list[tuple[slice, ...]]:
    """
    Place windows so that every voxel that is wanted lies in one, and few are needed (ours): slabs along the last axis,
    in each of them rows along the axis before, and so on, and each begins where those before it left off.

    Args:
        wanted: mask, shape ``spatial``; no side is shorter than a window's.
        size: sides of a window in voxels.
        overlap: share of a side, one for all or each its own, by which windows overlap where what is wanted goes on
            from one to the next, in [0, 1).

    Returns:
        The slices of each window, none if nothing is wanted.
    """
    mask = wanted.cpu().numpy()
    windows = [tuple(slice(0, side) for side in mask.shape)]
    strides = [
        max(1, int(side * (1 - share))) for side, share in zip(size, ensure_tuple_rep(overlap, mask.ndim), strict=True)
    ]
    for axis in reversed(range(mask.ndim)):
        side, stride = size[axis], strides[axis]
        others = tuple(other for other in range(mask.ndim) if other != axis)
        windows = [
            (*box[:axis], slice(start, start + side), *box[axis + 1 :])
            for box in windows
            for start in _starts(np.asarray(mask[box].any(others)), side, stride)
        ]
    return windows


def _starts(line: np.ndarray, side: int, stride: int) -> list[int]:
    """Place windows along a line; those of a stretch without a gap reach as far beyond one end of it as the other."""
    stretches: list[tuple[int, int, int]] = []  # the first and the last voxel that is wanted, the number of windows
    for place in np.flatnonzero(line).tolist():
        first, last, number = stretches.pop() if stretches else (place, place, 1)
        if place < first + (number - 1) * stride + side:
            stretches.append((first, place, number))
        elif place == last + 1:
            stretches.append((first, place, number + 1))
        else:
            stretches += [(first, last, number), (place, place, 1)]
    starts = []
    for first, last, number in stretches:
        reach = (number - 1) * stride + side
        start = max(0, min(first - (reach - (last + 1 - first)) // 2, len(line) - reach))
        starts += [min(start + step * stride, len(line) - side) for step in range(number)]
    return starts
