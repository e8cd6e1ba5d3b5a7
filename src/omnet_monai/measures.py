"""What is measured on a label map: volumes, numbers of lesions and axial diameters."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from omnet_monai.regions import BACKGROUND, EDEMA, NECROSIS, REGIONS

__all__ = ["MEASURES", "axial_diameter", "measure", "voxel_volume"]

PARTS = {**REGIONS, "edema": (EDEMA,), "NCR_NET": (NECROSIS,)}

MEASURES = [
    *(f"ml_{part}" for part in PARTS),
    *(f"{kind}_{region}" for kind in ("lesions", "diameter_mm") for region in REGIONS),
]
"""Names of what is measured: volumes in ml, numbers of lesions, largest axial diameters in mm."""


def measure(label: MetaTensor) -> dict[str, float]:
    """
    Measure the regions of a label map.

    A lesion is a 26-connected cluster of voxels, however small. The diameter is the longest line within an axial plane
    across one lesion, as RANO has it measured on axial images: not between separate lesions, not from slice to slice.

    Args:
        label: inner classes, shape ``(1, H, W, D)``, whose affine gives the orientation and the voxels' size in mm.

    Returns:
        Values by the names of ``MEASURES``; 0 for a region that is absent.
    """
    turned = MetaTensor(Orientation(axcodes="LPS", labels=None)(label))
    classes, spacing = turned[0].cpu().numpy(), turned.pixdim.tolist()
    tumor = ndimage.find_objects((classes != BACKGROUND).astype(np.uint8)) or [(slice(1),) * 3]
    classes = classes[tumor[0]]  # the rest of the volume has nothing to measure
    masks = {part: np.isin(classes, codes) for part, codes in PARTS.items()}
    values = {f"ml_{part}": float(mask.sum() * voxel_volume(label) / 1000) for part, mask in masks.items()}
    for region in REGIONS:
        values[f"lesions_{region}"] = ndimage.label(masks[region], np.ones((3, 3, 3)))[1]
        values[f"diameter_mm_{region}"] = axial_diameter(masks[region], spacing)
    return {name: values[name] for name in MEASURES}


def axial_diameter(mask: np.ndarray, spacing: list[float]) -> float:
    """
    Find the longest line across one 8-connected part of a mask within one slice of the last axis.

    A line ends on the faces of voxels, not in their centers: a row of ten voxels of 1 mm is 10 mm long.

    Args:
        mask: boolean, shape ``(H, W, D)``.
        spacing: of the voxels in mm along each axis.

    Returns:
        Length in mm, 0 for an empty mask.
    """
    size, longest = np.array(spacing[:2]), 0.0
    for position in np.flatnonzero(mask.any((0, 1))):
        parts, _ = ndimage.label(mask[..., position], np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            sides = [span.stop - span.start for span in box]
            if np.linalg.norm(size * sides) > longest:  # else it cannot hold a longer line
                longest = max(longest, _diameter(parts[box] == number, size))
    return longest


def voxel_volume(image: torch.Tensor | np.ndarray) -> float:
    """Return the volume of a voxel in mm3 by the affine of a ``MetaTensor``; 1 for what has none."""
    # The determinant, not the product of the spacings: axes need not be at right angles.
    return abs(float(torch.linalg.det(image.affine[:3, :3]))) if isinstance(image, MetaTensor) else 1.0


def _diameter(part: np.ndarray, size: np.ndarray) -> float:
    """Return the longest distance between two faces of voxels of one part of a plane, in mm."""
    rows = np.flatnonzero(part.any(1))
    first, last = part[rows].argmax(1), part.shape[1] - 1 - part[rows, ::-1].argmax(1)
    ends = np.concatenate([np.stack([rows, column], axis=1) for column in (first, last)]) * size
    faces = np.concatenate([ends + side * half for half in np.diag(size / 2) for side in (-1, 1)])
    return float(pdist(faces[ConvexHull(faces).vertices]).max())
