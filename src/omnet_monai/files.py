"""Files that are written whole or not at all, and told apart by what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["sha256", "whole_file"]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Give a temporary path to write to and rename it to ``path`` when all went well; after an error nothing is left.

    Args:
        path: file to write; its folder is made. Only one process may write it at a time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # the name keeps its extension, which tells writers the format
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(*paths: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of files, one after the other, in hexadecimal digits."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()
