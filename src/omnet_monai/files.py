"""Files written whole or not at all, told apart by what is in them, and continued by the same settings alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["keep_settings", "read_object", "require_same", "sha256", "whole_file"]


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
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_object(what: str, path: Path) -> dict[str, Any]:
    """
    Read a JSON file that must hold an object.

    Raises:
        ValueError: if it does not, which says what the file was to be.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{what} must be a JSON file, got {path}, which {state}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins files with a mark
    except ValueError as error:
        raise ValueError(f"{what} must be a JSON file, got {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a JSON file of an object, got {path} with a {type(content).__name__}")
    return content


def sha256(*paths: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of files, one after the other, in hexadecimal digits."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def require_same(file: str | os.PathLike[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: if the settings that results in a file are of differ from those to continue with; it names them.
    """
    changed = [key for key, value in now.items() if then.get(key) != value]
    if changed:
        raise ValueError(f"{file} must be of the same settings to be continued, differs in {', '.join(changed)}")


def keep_settings(file: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """
    Note what the results beside a file are of, unless that is noted.

    Args:
        file: JSON file of the settings.
        settings: what JSON can hold.

    Raises:
        ValueError: if other settings are noted there.
    """
    file = Path(file)
    if file.is_file():
        require_same(file, json.loads(file.read_text(encoding="utf-8")), settings)
    with whole_file(file) as part:
        part.write_text(json.dumps(settings) + "\n", encoding="utf-8")
