"""Pictures of a case: its regions beside the truth where there is one, or its sequences and what was segmented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from omnet_monai.files import whole_file
from omnet_monai.measures import voxel_volume
from omnet_monai.regions import CLASS_NAMES, EDEMA, ENHANCING, NECROSIS, REGIONS, SEQUENCES
from omnet_monai.results import milliliters

__all__ = ["CLASS_COLORS", "PREDICTED", "TRUE", "UNCERTAIN", "save_overlay", "save_segmentation"]

TRUE, PREDICTED = "#3db7ff", "#ff9a1f"
"""Colors of the truth and of what only it holds, of the prediction and of what only it holds; color-blind safe."""

CLASS_COLORS = {NECROSIS: "#d55e00", EDEMA: "#56b4e9", ENHANCING: "#f0e442"}
"""Colors of the inner classes where there is no truth to compare with; color-blind safe."""

UNCERTAIN = "#cc79a7"
"""Color of uncertainty, the more opaque the larger it is; color-blind safe beside the others."""

SHOWN_ON = {"WT": "flair", "TC": "t1c", "ET": "t1c"}
BELOW, CONTRAST = ("flair", "t2", "t1c", "t1"), ("t1c", "t1", "t2", "flair")
"""What all classes and uncertainty are drawn on, and the core once more: the first that is there."""

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
MARGIN = 3


def save_overlay(
    image: torch.Tensor | np.ndarray,
    label: torch.Tensor | np.ndarray,
    path: str | Path,
    truth: torch.Tensor | np.ndarray | None = None,
    title: str = "",
) -> None:
    """
    Draw a case, a row per region: axial, coronal and sagittal through the region's center and, where there is a truth,
    the axial plane with most voxels wrong. Outlines are the truth's and the prediction's; an area is filled where only
    one of them has the region. Beside each row stand the volumes.

    Args:
        image: the four sequences in the order of ``SEQUENCES``, background 0, LPS axes, shape ``(4, H, W, D)``; the
            size of a voxel is a ``MetaTensor``'s, else 1 mm along each axis.
        label: predicted inner classes, shape ``(1, H, W, D)`` or ``(H, W, D)``.
        path: PNG file to write.
        truth: true inner classes, ``None`` for none.
        title: text above the picture.
    """
    spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    maps = [each if each is None else np.asarray(each).reshape(image.shape[1:]) for each in (label, truth)]
    volumes, found, reference = _crop(np.asarray(image, dtype=np.float32), *maps)
    columns = len(PLANES) + (reference is not None)
    figure, axes = _figure(len(REGIONS), columns, (2.6 * columns + 0.4, 8.25), title)
    for row, (region, classes) in zip(axes, REGIONS.items(), strict=True):
        pred = np.isin(found, classes)
        true = None if reference is None else np.isin(reference, classes)
        volume = _shown(volumes[SEQUENCES.index(SHOWN_ON[region])])
        views = _views(pred, true, found if reference is None or not reference.any() else reference)
        for axis, (name, normal, position) in zip(row, views, strict=True):
            _draw_plane(axis, [volume, pred, true], normal, position, spacing)
            axis.set_title(name, color="white", fontsize=8)
        row[0].set_ylabel(_caption(region, pred, true, voxel_volume(image)), color="white", fontsize=9)
    both = {"truth, filled where missed": TRUE, "prediction, filled where false": PREDICTED}
    _save(figure, {"prediction": PREDICTED} if reference is None else both, path)


def save_segmentation(
    image: torch.Tensor | np.ndarray,
    label: torch.Tensor | np.ndarray,
    uncertainty: torch.Tensor | np.ndarray,
    path: str | Path,
    title: str = "",
) -> None:
    """
    Draw a case so that a look tells whether to trust it. Above are the four sequences in the axial plane through the
    tumor's center, each with the name it was given; below the classes, on FLAIR in three planes and on T1c in one. On
    the right is the uncertainty, in that axial plane and in the one that has most of it.

    Args:
        image: the four sequences in the order of ``SEQUENCES``, background 0, LPS axes, shape ``(4, H, W, D)``; the
            size of a voxel is a ``MetaTensor``'s, else 1 mm along each axis.
        label: inner classes, shape ``(1, H, W, D)`` or ``(H, W, D)``.
        uncertainty: in [0, 1], shape as of the label.
        path: PNG file to write.
        title: text above the picture.
    """
    spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    maps = [np.asarray(each).reshape(image.shape[1:]) for each in (label, uncertainty)]
    volumes, found, doubt = _crop(np.asarray(image, dtype=np.float32), *maps)
    center = _center(found > 0)
    planes = {name: (normal, int(center[normal])) for name, normal in PLANES.items()}
    planes["axial, where most"] = (PLANES["axial"], int(doubt.sum((0, 1)).argmax()))
    figure, axes = _figure(2, len(SEQUENCES) + 1, (13.4, 6.4), title)
    there = [sequence for sequence, volume in zip(SEQUENCES, volumes, strict=True) if volume.any()]
    shown = dict(zip(SEQUENCES, map(_shown, volumes), strict=True))
    for axis, (name, sequence, classes, unsure) in zip(axes.flat, _panels(found, doubt, there), strict=True):
        _draw_classes(axis, shown[sequence], classes, unsure, *planes[name], spacing)
        text = sequence.upper() if classes is None and unsure is None else f"{name} on {sequence.upper()}"
        text = text if unsure is None else f"uncertainty, {name}"
        axis.set_title(text if sequence in there else f"{sequence.upper()} is missing", color="white", fontsize=10)
    _save(figure, {CLASS_NAMES[cls]: color for cls, color in CLASS_COLORS.items()} | {"uncertain": UNCERTAIN}, path)


def _figure(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Any, np.ndarray]:
    """Make a black figure of a size in inches, and its axes."""
    from matplotlib.figure import Figure  # here, because it takes longer to import than everything else

    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    figure.suptitle(title, color="white", fontsize=10, parse_math=False)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, meanings: dict[str, str], path: str | Path) -> None:
    """Add a legend of meanings and their colors, and write the file."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color, label=label) for label, color in meanings.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=4, labelcolor="linecolor", frameon=False, fontsize=9)
    with whole_file(path) as part:
        figure.savefig(part, dpi=100)


def _shown(volume: np.ndarray) -> np.ndarray:
    """Scale a sequence so that its brain lies between 0 and 1, but for the extremes, and its background at 0."""
    brain = volume[volume != 0]
    low, high = np.percentile(brain, [0.5, 99.5]) if brain.size else (0.0, 1.0)
    return np.where(volume == 0, 0, (volume - low) / (high - low or 1))  # 0 may lie amid what was normalized


def _panels(
    label: np.ndarray, doubt: np.ndarray, there: Sequence[str]
) -> list[tuple[str, str, np.ndarray | None, np.ndarray | None]]:
    """List the panels of a segmentation, row by row: plane, sequence that is there, and what is drawn on it."""
    below, contrast = (min(there or SEQUENCES, key=wanted.index) for wanted in (BELOW, CONTRAST))
    bare: list[Any] = [("axial", sequence, None, None) for sequence in SEQUENCES]
    classes = [(name, below, label, None) for name in PLANES]
    unsure = [(name, below, None, doubt) for name in ("axial", "axial, where most")]
    return [*bare, unsure[0], *classes, ("axial", contrast, label, None), unsure[1]]


def _crop(image: np.ndarray, *labels: np.ndarray | None) -> list[Any]:
    """Cut image and labels to the box that holds the brain and the tumors."""
    inside = (image != 0).any(0)
    for label in labels:
        inside |= False if label is None else label > 0
    spans = ndimage.find_objects(inside.astype(np.uint8)) or [tuple(slice(0, size) for size in inside.shape)]
    box = tuple(slice(max(span.start - MARGIN, 0), span.stop + MARGIN) for span in spans[0])
    return [image[:, *box], *(None if label is None else label[box] for label in labels)]


def _views(pred: np.ndarray, true: np.ndarray | None, tumor: np.ndarray) -> list[tuple[str, int, int]]:
    """Choose the planes of a region, each with its name, its normal axis and its position along that."""
    reference = pred if true is None or not true.any() else true
    center = _center(reference if reference.any() else tumor > 0)
    views = [(name, normal, int(center[normal])) for name, normal in PLANES.items()]
    if true is not None:
        wrong = np.count_nonzero(pred ^ true, axis=(0, 1))
        name = "axial, most voxels wrong" if wrong.any() else "nothing is wrong"
        views.append((name, PLANES["axial"], int(wrong.argmax()) if wrong.any() else int(center[2])))
    return views


def _center(mask: np.ndarray) -> np.ndarray:
    """Find the median voxel of the largest cluster of a mask, or the middle of an empty one."""
    clusters, number = ndimage.label(mask, np.ones((3, 3, 3)))
    if not number:
        return np.array(mask.shape) // 2
    largest = np.bincount(clusters.ravel())[1:].argmax() + 1
    return np.median(np.argwhere(clusters == largest), axis=0).astype(int)


def _draw_plane(
    axis: Any, volumes: Sequence[np.ndarray | None], normal: int, position: int, spacing: Sequence[float]
) -> None:
    volume, pred, true = (v if v is None else _slice(v, normal, position) for v in volumes)
    axis.imshow(volume, cmap="gray", vmin=0, vmax=1)
    if pred is not None and true is not None:
        for only, color in ((true & ~pred, TRUE), (pred & ~true, PREDICTED)):
            axis.imshow(_tint(only, color))
    for mask, color in ((true, TRUE), (pred, PREDICTED)):
        _outline(axis, mask, color, 1.1)
    _finish(axis, normal, spacing)


def _draw_classes(
    axis: Any,
    volume: np.ndarray,
    label: np.ndarray | None,
    doubt: np.ndarray | None,
    normal: int,
    position: int,
    spacing: Sequence[float],
) -> None:
    """Draw a plane of a sequence, and on it the classes or the uncertainty, if any."""
    axis.imshow(_slice(volume, normal, position), cmap="gray", vmin=0, vmax=1)
    plane = _slice(np.zeros_like(volume) if label is None else label, normal, position)
    for cls, color in CLASS_COLORS.items():
        mask = plane == cls
        axis.imshow(_tint(mask, color))
        _outline(axis, mask, color, 0.8)
    if doubt is not None:
        unsure = _slice(doubt, normal, position)
        tint = _tint(np.ones_like(unsure, dtype=bool), UNCERTAIN)
        tint[..., 3] = 255 * np.clip(unsure, 0, 1)
        axis.imshow(tint)
    _finish(axis, normal, spacing)


def _finish(axis: Any, normal: int, spacing: Sequence[float]) -> None:
    """Give a plane its proportions, and a mark of the patient's side on its left."""
    across, up = (size for n, size in enumerate(spacing) if n != normal)
    axis.set(xticks=[], yticks=[], aspect=up / across)
    axis.spines[:].set_visible(False)
    side = "A" if normal == PLANES["sagittal"] else "R"
    axis.text(0.01, 0.5, side, transform=axis.transAxes, color="white", fontsize=8)


def _outline(axis: Any, mask: np.ndarray | None, color: str, width: float) -> None:
    """Draw the outline of a mask; there is none in a plane that a volume of few slices makes one voxel thick."""
    if mask is not None and mask.any() and min(mask.shape) > 1:
        axis.contour(mask, levels=[0.5], colors=color, linewidths=width)


def _slice(volume: np.ndarray, normal: int, position: int) -> np.ndarray:
    """Cut a plane out of an LPS volume so that anterior or superior is up and the patient's right is left."""
    plane = np.take(volume, position, axis=normal).T
    return plane if normal == 2 else plane[::-1]


def _tint(mask: np.ndarray, color: str) -> np.ndarray:
    """Color a mask, half transparent, as RGBA bytes."""
    rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return mask[..., None] * np.array([*rgb, 110], dtype=np.uint8)


def _caption(region: str, pred: np.ndarray, true: np.ndarray | None, voxel: float) -> str:
    """Name a region with its volumes in ml, given that of a voxel in mm3."""
    volumes = f"prediction {milliliters(pred.sum() * voxel / 1000)} ml"
    if true is not None:
        volumes = f"truth {milliliters(true.sum() * voxel / 1000)} ml, {volumes}"
    return f"{region} on {SHOWN_ON[region].upper()}\n{volumes}"
