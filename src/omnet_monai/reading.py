"""Read one image file, whatever its format, or say in one error what is wrong with it."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import deflate
import nibabel
import numpy as np
from monai.data import ITKReader
from monai.utils import optional_import
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from omnet_monai.layouts import EXTENSIONS, stem

__all__ = ["file_error", "read_file"]

LARGEST = 1e15
"""Of the intensities: their squares are summed up in float32."""

UNREADABLE = (OSError, EOFError, ValueError, OverflowError, RuntimeError, zlib.error, ImageFileError, HeaderDataError)


def read_file(case: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file: its array as stored, without axes of one beyond the third, and its affine to RAS in mm."""
    if not file.is_file():
        raise file_error(case, file, "file must exist, got a path without a file")
    if stem(file) is None:
        raise file_error(case, file, f"file must end in one of {', '.join(EXTENSIONS)}, got {file.name}")
    mha = file.name.lower().endswith(".mha")
    if mha and not optional_import("itk")[1]:
        raise ImportError(f"case {case}: {file}: MetaImage files need ITK: pip install itk-io")
    try:
        array, affine = _read_mha(file) if mha else _read_nifti(file)
    except UNREADABLE as error:
        raise file_error(case, file, f"file must be readable, got {type(error).__name__}: {error}") from error
    if not array.size:
        raise file_error(case, file, f"file must hold voxels, got a shape of {array.shape}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise file_error(case, file, f"affine must be an invertible 4x4 matrix, got {affine.tolist()}")
    if array.dtype.kind not in "biuf":
        raise file_error(case, file, f"values must be real numbers, one per voxel, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        number = np.count_nonzero(~np.isfinite(array))
        raise file_error(case, file, f"values must be finite, got {number} NaN or infinite")
    if max(float(array.max()), -float(array.min())) > LARGEST:
        raise file_error(case, file, f"values must be within {LARGEST:g}, got {array.min():g} to {array.max():g}")
    return array.reshape(array.shape[:3] + tuple(size for size in array.shape[3:] if size > 1)), affine


def _read_nifti(file: Path) -> tuple[np.ndarray, np.ndarray]:
    # Not by MONAI's NibabelReader: where an sform's spacing is off by 1e-5 it takes the qform, even one that is unset.
    image: Any = nibabel.load(file)
    stored, affine = image.dataobj, np.asarray(image.affine, dtype=np.float64)
    if not file.name.lower().endswith(".gz"):
        return np.array(np.asanyarray(stored)), affine  # a copy, no map of the file
    size = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    data = _decompressed(file.read_bytes(), size)
    if len(data) < size:
        raise EOFError(f"{size} bytes by the header, {len(data)} in the file")
    voxels: Any = np.ndarray(stored.shape, stored.dtype, data, stored.offset, order="F")
    return apply_read_scaling(voxels, stored.slope, stored.inter), affine


def _decompressed(data: bytes, size: int) -> bytes | bytearray:
    """
    Decompress a gzip file that should hold ``size`` bytes, up to its checksum, which nibabel never reaches.

    By libdeflate: zlib, which says what is wrong and also knows other sizes and several parts, takes three times as
    long.
    """
    try:
        result = deflate.gzip_decompress(data, size)
    except (deflate.DeflateError, ValueError, MemoryError):
        return gzip.decompress(data)
    return result if len(result) == size else gzip.decompress(data)


def _read_mha(file: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = ITKReader()
    array, meta = reader.get_data(reader.read(str(file)))
    return np.array(array), np.asarray(meta["original_affine"], dtype=np.float64)  # copies: ITK's are about to be freed


def file_error(case: str, file: Path, rule: str) -> ValueError:
    """Return the error that names case, file and rule."""
    return ValueError(f"case {case}: {file}: {rule}")
