"""Walk through a directory of cases, and tell what in it is no case: patients whose files no layout names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from omnet_monai.layouts import name_parts, stem

__all__ = ["files_below", "left_aside"]

DICOM = (".dcm", ".ima")


def files_below(directory: Path, refuse: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Walk through all folders, also those that links lead to, but through none twice: a link may lead back."""
    seen = set()
    for root, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Of two ways to a folder the first is taken: the same one on every file system, and no link where it can be.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(root, name)), name))
        yield from (Path(root, name) for name in names)


def left_aside(directory: Path, files: Iterable[Path], limit: int = 10) -> list[str]:
    """
    Tell the folders directly below a directory, and itself, in which there are images or DICOM files but none that a
    known layout names.

    Args:
        directory: folder of cases.
        files: all files below it.
        limit: number of folders to tell one by one.

    Returns:
        A line for each, with one of its files.
    """
    named: set[Path] = set()
    others: dict[Path, list[Path]] = {}
    for file in files:
        folder = directory.joinpath(*file.relative_to(directory).parts[:-1][:1])
        if name_parts(file):
            named.add(folder)
        elif stem(file) or file.name.lower().endswith(DICOM):
            others.setdefault(folder, []).append(file)
    lines = [_line(folder, files) for folder, files in sorted(others.items()) if folder not in named]
    more = [f"{len(lines) - limit} more folders like these"] if len(lines) > limit else []
    return lines[:limit] + more


def _line(folder: Path, files: list[Path]) -> str:
    first = min(files)
    rule = "DICOM is not read: convert it to NIfTI" if first.name.lower().endswith(DICOM) else "named by no layout"
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{folder}: {first.relative_to(folder)}{more}: {rule}"
