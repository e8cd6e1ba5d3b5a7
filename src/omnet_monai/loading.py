"""Load a case of four sequences in whatever form it comes, and refuse one that does not fit together."""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.transforms import Transform
from monai.utils import optional_import
from nibabel.filebasedimages import ImageFileError

from omnet_monai.layouts import EXTENSIONS, case_name, find_case, missing_or_twice, name_parts, stem
from omnet_monai.regions import SEQUENCES, classes_from_codes

__all__ = ["LoadCased", "read_label"]

logger = logging.getLogger(__name__)

AXES_TOLERANCE = 1e-3
"""Difference between two affines, in mm per voxel along any axis, up to which their grids are the same."""

ORIGIN_TOLERANCE = 0.5
"""Difference between two origins, in voxels along any axis, up to which the first is taken, with a warning."""

UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, ImageFileError)
Grid = tuple[tuple[int, ...], np.ndarray]


class LoadCased(Transform):
    """
    Load the four sequences of a case, and its label if there is one, from any of the forms cases come in:

    - a list of four files in the order of ``SEQUENCES``,
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
        scheme: label scheme, a key of ``SCHEMES``, unless the case says so itself under "scheme"; ``None`` for labels
            of unknown origin, in which 3 and 4 both mean enhancing.

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
        if len(files) == 1:
            stated = data.get("order") or self.order
            order = stated or order or SEQUENCES
            image, affine = _read_channels(case, files[0], order)
            if not stated:
                logger.info(f"case {case}: {files[0]}: no order was given, channels are read as {', '.join(order)}")
        else:
            image, affine = _read_sequences(case, files)
        result = {key: value for key, value in data.items() if key != "order"}
        result[self.image_key] = _with_meta(torch.from_numpy(image), affine, case, files[0])
        if self.label_key in data:
            file = Path(data[self.label_key])
            label = read_label(case, file, data.get("scheme") or self.scheme, image.shape[1:], affine)
            result[self.label_key] = _with_meta(label, affine, case, file)
        return result


def read_label(case: str, file: Path, scheme: str | None, shape: tuple[int, ...], affine: np.ndarray) -> torch.Tensor:
    """Read a label map on the grid of the image into inner classes, uint8 of shape ``(1, H, W, D)``."""
    array, own_affine = _read(case, file)
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


def _error(case: str, file: Path, rule: str) -> ValueError:
    return ValueError(f"case {case}: {file}: {rule}")


def _locate(image: Any, case: str | None) -> tuple[str, list[Path], Sequence[str] | None]:
    """Name a case and list its files in the order of ``SEQUENCES``, or its one 4-D file with its order if known."""
    if isinstance(image, (list, tuple)) and all(isinstance(file, (str, os.PathLike)) for file in image):
        files = [Path(file) for file in image]
        case = case or case_name(files)
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
    problems = "" if "image" in found else missing_or_twice(found)
    if problems:
        raise _error(case or name, path, f"a file for each of {', '.join(SEQUENCES)} must be there, got {problems}")
    return case or name, [found[part][0] for part in (["image"] if "image" in found else SEQUENCES)], order


def _check_list(case: str, files: list[Path]) -> None:
    """Refuse a list that is not one existing file per sequence, each in its place as far as its name tells."""
    names = ", ".join(map(str, files))
    if len(files) != len(SEQUENCES):
        raise ValueError(f"case {case}: image must list {', '.join(SEQUENCES)}, got {len(files)} files: {names}")
    for sequence, file in zip(SEQUENCES, files, strict=True):
        if not file.is_file():
            raise _error(case, file, f"missing sequence: the file of {sequence} must exist")
    told = [parts.part if parts and parts.part != "image" else None for parts in map(name_parts, files)]
    for position, (file, part) in enumerate(zip(files, told, strict=True)):
        for other, other_part in zip(files[:position], told, strict=False):
            if file.samefile(other) or (part and part == other_part):
                raise _error(case, file, f"a sequence must be listed once, got {part or 'it'} twice: also {other}")
    for sequence, file, part in zip(SEQUENCES, files, told, strict=True):
        if part not in (None, sequence):
            raise _error(case, file, f"file must be {sequence} by its place in the list, got {part} by its name")


def _read(case: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file: its array as stored, without axes of one beyond the third, and its affine to RAS in mm."""
    if not file.is_file():
        raise _error(case, file, "file must exist, got a path without a file")
    if stem(file) is None:
        raise _error(case, file, f"file must end in one of {', '.join(EXTENSIONS)}, got {file.name}")
    mha = file.name.lower().endswith(".mha")
    if mha and not optional_import("itk")[1]:
        raise ImportError(f"case {case}: {file}: MetaImage files need ITK: pip install omnet-monai[mha]")
    reader = ITKReader() if mha else NibabelReader()
    try:
        array, meta = reader.get_data(reader.read(str(file)))
        array = np.array(array)  # a copy: an ITK array is a view of an image about to be freed
    except UNREADABLE as error:
        raise _error(case, file, f"file must be readable, got {type(error).__name__}: {error}") from error
    affine = np.asarray(meta["original_affine"], dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise _error(case, file, f"affine must be an invertible 4x4 matrix, got {affine.tolist()}")
    if array.dtype.kind not in "biuf":
        raise _error(case, file, f"values must be real numbers, one per voxel, got {array.dtype}")
    if not np.isfinite(array).all():
        raise _error(case, file, f"values must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite")
    return array.reshape(array.shape[:3] + tuple(size for size in array.shape[3:] if size > 1)), affine


def _read_sequences(case: str, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read four 3-D files that share a grid into float32 of shape ``(4, H, W, D)``, with the first one's affine."""
    volumes, affines = zip(*(_read(case, file) for file in files), strict=True)
    shifts = {}
    for sequence, file, volume, affine in zip(SEQUENCES, files, volumes, affines, strict=True):
        if volume.ndim != 3:
            raise _error(case, file, f"{sequence} must be a 3-D image, got shape {volume.shape}")
        if not volume.any():
            raise _error(case, file, f"{sequence} must not be empty, got zeros only")
        shifts[file] = _grid_shift(case, file, (volume.shape, affine), (volumes[0].shape, affines[0]))
    _warn_of_shifts(case, files[0], shifts)
    return np.stack(volumes).astype(np.float32, copy=False), affines[0]


def _read_channels(case: str, file: Path, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a 4-D file with the channels of ``order`` into float32 of shape ``(4, H, W, D)``, and its affine."""
    if sorted(order) != sorted(SEQUENCES):
        raise _error(case, file, f"order must be a permutation of {', '.join(SEQUENCES)}, got {order!r}")
    array, affine = _read(case, file)
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
        raise _error(case, file, f"axes and spacing must agree within {AXES_TOLERANCE} mm/voxel, got {columns:.4f} mm")
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
