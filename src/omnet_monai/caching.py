"""Prepared cases on disk, mapped into memory: as many as a data set has, at the memory of the patches cut from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import monai
import numpy as np
import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from omnet_monai import __version__
from omnet_monai.images import file_states

__all__ = ["MappedDataset"]


class MappedDataset(Dataset):
    """
    Prepare each case once, keep it in a file, and map that file into memory from then on.

    A BraTS case takes about 30 MB, cropped to the brain, in float16. Only what is read of it comes from the disk, and
    the memory it then takes is the system's to give away again. MONAI's ``PersistentDataset`` reads its files whole.

    A file belongs to one case, its image and label files as they were (size and time of change), the transforms, and
    the versions of this package and MONAI; a change of any makes a new one. Which fold a case and its patient are in is
    no part of it and not returned, so all folds share their files. Nothing is ever deleted: the folder may be, between
    two runs.

    Args:
        data: cases, as in a data list.
        transform: deterministic transforms. The arrays they return are kept as plain tensors, floating ones as float16.
        cache_dir: folder of the files; made at the first case.

    Raises:
        ValueError: if there is no case.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable | Sequence[Callable], cache_dir: str | os.PathLike
    ) -> None:
        if not data:
            raise ValueError("a data list must have cases to train on, got none, or none outside the fold")
        self.data = data
        self.transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.cache_dir = Path(cache_dir)
        self.prepared_by = pickle_hashing(self.transform.transforms)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return a prepared case whose tensors are mapped from its file."""
        case = {key: value for key, value in self.data[position].items() if key not in ("patient", "fold")}
        file = self._file(case)
        with suppress(OSError, RuntimeError):  # of a file that is not there yet, or not whole
            return torch.load(file, mmap=True, weights_only=True)
        prepared = {key: _kept(value) for key, value in self.transform(case).items()}
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        # Processes, even of several machines, may come to a case at once: each writes its own, the last one stays.
        temporary = file.with_name(f".{file.name}.{uuid4().hex}")
        try:
            torch.save(prepared, temporary)
            os.replace(temporary, file)
        except RuntimeError as error:  # torch's for a full disk, which tells of positions in the file
            rule = f"{self.cache_dir} must have room for the prepared case"
            raise OSError(f"case {case.get('case')}: {rule}, got {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return torch.load(file, mmap=True, weights_only=True)

    def _file(self, case: Mapping[str, Any]) -> Path:
        changes = file_states(case["image"]) + file_states([case.get("label")])
        known = [pickle_hashing(dict(case)), self.prepared_by, __version__, monai.__version__, changes]
        return self.cache_dir / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}.pt"


def _kept(value: Any) -> Any:
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        return value
    plain = convert_to_tensor(value, track_meta=False)
    return (plain.half() if plain.is_floating_point() else plain).contiguous()
