"""Load a case of four sequences in whatever form it comes, and refuse one that does not fit together."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from omnet_monai.finding import find_case, missing_or_twice
from omnet_monai.layouts import case_name, label_scheme, name_parts, stem
from omnet_monai.reading import file_error as _error
from omnet_monai.reading import read_file
from omnet_monai.regions import SEQUENCES, classes_from_codes

__all__ = ["LoadCased", "read_label"]

logger = logging.getLogger(__name__)

AXES_TOLERANCE = 1e-3
"""Difference between two affines, in mm per voxel along any axis, up to which their grids are the same."""

ORIGIN_TOLERANCE = 0.5
"""Difference between two origins, in voxels along any axis, up to which the first is taken, with a warning."""

Grid = tuple[tuple[int, ...], np.ndarray]


class LoadCased(Transform):
    """
    Load the four sequences of a case, and its label if there is one, from any of the forms cases come in:

    - a list of four files in the order of ``SEQUENCES``, ``None`` for one that is missing, which is logged,
    - one 4-D file,
    - a folder with four files of a known layout,
    - one 3-D file whose siblings lie beside it or in ``modalities/<case>/`` below its folder, as for MONAI Label.

    All give the same image. No file is resampled: the sequences must share a grid, and the first one's affine is the
    case's. Not a ``LoadImaged``, as MONAI Label takes the input of that for an array unless it is a string.

    Args:
        image_key: key of the image.
        label_key: key of the label map, which may be absent.
        order: the channels of a 4-D file, unless the case says so itself under "order"; ``None`` for MSD's order in
            MSD's folders and that of ``SEQUENCES`` elsewhere, which is logged. A list has the order of ``SEQUENCES``.
        scheme: label scheme, a key of ``SCHEMES``, unless the case says so itself under "scheme"; ``None`` for that
            of the layout that the label's name tells, and for ``_seg``, bare and other names, which tell none, for
            3 and 4 that both mean enhancing.

    Raises:
        ValueError: if ``order`` is not a permutation of ``SEQUENCES``.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str = "label",
        order: Sequence[str] | None = None,
        scheme: str | None = None,
    ) -> None:
        if order is not None and sorted(order) != sorted(SEQUENCES):
            raise ValueError(f"order must be a permutation of {', '.join(SEQUENCES)}, got {order!r}")
        self.image_key, self.label_key, self.order, self.scheme = image_key, label_key, order, scheme

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: a case with its image and maybe "label", "case", "order" and "scheme".

        Returns:
            The case with the image a float32 ``MetaTensor`` of shape ``(4, H, W, D)``, the label a uint8 one of inner
            classes of shape ``(1, H, W, D)``, everything else as it was, save "order", which no longer holds.

        Raises:
            ValueError: for files that are missing, named for another sequence, unreadable, empty or not finite, or
                that do not share a grid, and for labels with codes that their scheme does not know.
            ImportError: for a ``.mha`` file without ITK.
        """
        case, files, order = _locate(data[self.image_key], data.get("case"))
        first = next(iter(files.values()))
        if "image" in files:
            stated = data.get("order") or self.order
            order = stated or order or SEQUENCES
            image, affine = _read_channels(case, first, order)
            if not stated:
                logger.info(f"case {case}: {first}: no order was given, channels are read as {', '.join(order)}")
        else:
            image, affine = _read_sequences(case, files)
        result = {key: value for key, value in data.items() if key != "order"}
        result[self.image_key] = _with_meta(torch.from_numpy(image), affine, case, first)
        missing = [] if "image" in files else [sequence for sequence in SEQUENCES if sequence not in files]
        result[self.image_key].meta["missing"] = ", ".join(missing)
        if data.get(self.label_key):
            file = Path(data[self.label_key])
            scheme = data.get("scheme") or self.scheme or label_scheme(file)
            label = read_label(case, file, scheme, image.shape[1:], affine)
            result[self.label_key] = _with_meta(label, affine, case, file)
        return result


def read_label(case: str, file: Path, scheme: str | None, shape: tuple[int, ...], affine: np.ndarray) -> torch.Tensor:
    """Read a label map on the grid of the image into inner classes, uint8 of shape ``(1, H, W, D)``."""
    array, own_affine = read_file(case, file)
    _warn_of_shifts(case, file, {file: _grid_shift(case, file, (array.shape, own_affine), (shape, affine))})
    # One byte where the codes allow: finding the codes in use takes a fifth of the time then.
    codes = array.astype(np.uint8 if array.min() >= 0 and array.max() <= 255 else np.int64)
    if (codes != array).any():
        raise _error(case, file, f"label codes must be whole numbers, got {array[codes != array][0]}")
    try:
        label = classes_from_codes(torch.from_numpy(codes), scheme)
    except ValueError as error:
        raise _error(case, file, str(error)) from error
    if scheme == "brats2023" and (cavity := np.count_nonzero(codes == 4)):
        warnings.warn(f"case {case}: {file}: {cavity} voxels of resection cavity taken for background", stacklevel=2)
    return label[None]


def _locate(image: Any, case: str | None) -> tuple[str, dict[str, Path], Sequence[str] | None]:
    """Name a case and its files by sequence, or its one 4-D file as "image" with its order if known."""
    if isinstance(image, (list, tuple)) and all(isinstance(file, (str, os.PathLike, type(None))) for file in image):
        listed = [Path(file) for file in image if file is not None]
        case = case or case_name(listed)
        if len(image) != len(SEQUENCES) or not listed:
            names = ", ".join(map(str, listed))
            raise ValueError(f"case {case}: image must list {', '.join(SEQUENCES)}, got {len(listed)} files: {names}")
        files = {part: Path(file) for part, file in zip(SEQUENCES, image, strict=True) if file is not None}
        _check_list(case, files)
        return case, files, None
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"case {case}: image must be a path or a list of four paths, got {image!r:.80}")
    path = Path(image)
    if not path.exists():
        raise _error(case or case_name([path]), path, "image must exist, got a path without a file")
    try:
        name, found, order = find_case(path)
    except ValueError as error:
        raise ValueError(f"case {case or path.name}: {error}") from error
    problems = "" if "image" in found else "; ".join(filter(None, missing_or_twice(found)))
    if problems:
        raise _error(case or name, path, f"a file for each of {', '.join(SEQUENCES)} must be there, got {problems}")
    return case or name, {part: found[part][0] for part in (["image"] if "image" in found else SEQUENCES)}, order


def _check_list(case: str, files: dict[str, Path]) -> None:
    """Refuse files that do not exist, are listed twice, or are named for another sequence than that of their place."""
    for sequence, file in files.items():
        if not file.is_file():
            raise _error(case, file, f"missing sequence: the file of {sequence} must exist")
    parts = [(file, name_parts(file)) for file in files.values()]
    told = [(file, found.part if found and found.part != "image" else None) for file, found in parts]
    for position, (file, part) in enumerate(told):
        for other, other_part in told[:position]:
            if file.samefile(other) or (part and part == other_part):
                raise _error(case, file, f"a sequence must be listed once, got {part or 'it'} twice: also {other}")
    for sequence, (file, part) in zip(files, told, strict=True):
        if part not in (None, sequence):
            raise _error(case, file, f"file must be {sequence} by its place in the list, got {part} by its name")


def _read_sequences(case: str, files: dict[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read 3-D files that share a grid into float32 of shape ``(4, H, W, D)``, with the first one's affine."""
    with ThreadPoolExecutor() as threads:  # which decompress, and convert, at the same time
        volumes = dict(zip(files, threads.map(partial(read_file, case), files.values()), strict=True))
        (first, affine), shifts = next(iter(volumes.values())), {}
        for sequence, (volume, own_affine) in volumes.items():
            if volume.ndim != 3:
                raise _error(case, files[sequence], f"{sequence} must be a 3-D image, got shape {volume.shape}")
            if not volume.any():
                raise _error(case, files[sequence], f"{sequence} must not be empty, got zeros only")
            grids = (volume.shape, own_affine), (first.shape, affine)
            shifts[files[sequence]] = _grid_shift(case, files[sequence], *grids)
        image = torch.zeros(len(SEQUENCES), *first.shape[::-1]).numpy().transpose(0, 3, 2, 1)  # as files lie
        channels = [image[SEQUENCES.index(sequence)] for sequence in volumes]
        list(threads.map(np.copyto, channels, [volume for volume, _ in volumes.values()]))
    _warn_of_shifts(case, files[next(iter(files))], shifts)
    missing = [sequence for sequence in SEQUENCES if sequence not in files]
    if missing:
        logger.warning(f"case {case}: missing {', '.join(missing)}, taken for 0 everywhere")
    return image, affine


def _read_channels(case: str, file: Path, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a 4-D file with the channels of ``order`` into float32 of shape ``(4, H, W, D)``, and its affine."""
    if sorted(order) != sorted(SEQUENCES):
        raise _error(case, file, f"order must be a permutation of {', '.join(SEQUENCES)}, got {order!r}")
    array, affine = read_file(case, file)
    if array.ndim != 4 or array.shape[3] != len(SEQUENCES):
        raise _error(case, file, f"a file without siblings must be 4-D with 4 channels last, got shape {array.shape}")
    channels = [array[..., list(order).index(sequence)] for sequence in SEQUENCES]
    for sequence, channel in zip(SEQUENCES, channels, strict=True):
        if not channel.any():
            raise _error(case, file, f"{sequence} must not be empty, got zeros only")
    return np.stack(channels).astype(np.float32, copy=False), affine


def _grid_shift(case: str, file: Path, grid: Grid, first: Grid) -> float:
    """Refuse a file that is not on the first one's grid; else return how far its origin is from the first's, in mm."""
    (shape, affine), (first_shape, first_affine) = grid, first
    if shape != first_shape:
        raise _error(case, file, f"files must share a spatial shape, got {shape} beside {first_shape}")
    columns = np.linalg.norm(affine[:3, :3] - first_affine[:3, :3], axis=0).max()
    if columns > AXES_TOLERANCE:
        rule = f"axes and spacing must agree within {AXES_TOLERANCE} mm/voxel"
        raise _error(case, file, f"{rule}, got {columns:.4f} mm: reorient or resample to one grid")
    offset = affine[:3, 3] - first_affine[:3, 3]
    voxels = np.abs(np.linalg.solve(first_affine[:3, :3], offset)).max()
    if voxels > ORIGIN_TOLERANCE:
        raise _error(case, file, f"origins must agree within {ORIGIN_TOLERANCE} voxel, got {voxels:.2f} voxels")
    return float(np.linalg.norm(offset))


def _warn_of_shifts(case: str, first: Path, shifts: dict[Path, float]) -> None:
    shifted = [f"{file.name} by {shift:.3f} mm" for file, shift in shifts.items() if shift > AXES_TOLERANCE]
    if shifted:
        message = f"case {case}: {first}: origins differ, the first file's is used: {', '.join(shifted)}"
        warnings.warn(message, stacklevel=2)


def _with_meta(volume: torch.Tensor, affine: np.ndarray, case: str, file: Path) -> MetaTensor:
    meta = {
        "original_affine": affine.copy(),
        "spatial_shape": np.array(volume.shape[1:]),
        "original_channel_dim": 0,
        "space": "RAS",
        # Without extension: for a NIfTI file, Spacingd would write into all "image_*", MONAI Label's path among them.
        "filename_or_obj": str(file.with_name(stem(file) or file.name)),
        "case": case,
    }
    return MetaTensor(volume, affine=torch.from_numpy(affine.copy()), meta=meta)
