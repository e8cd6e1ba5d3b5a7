"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnet_monai.datalist import write_datalist
from omnet_monai.phantom import write_phantoms


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a bundle's logging.conf does to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real cases that the variable OMNET_DATA names; a test that asks for it is skipped without one."""
    folder = os.environ.get("OMNET_DATA")
    if not folder:
        pytest.skip("needs real cases: set OMNET_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"OMNET_DATA must name an existing folder, got {folder}")
    return Path(folder)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small generated cases in two folds, one of them also the test section, with its datalist."""
    folder = tmp_path_factory.mktemp("phantoms")
    names = [path.name for path in write_phantoms(folder, cases=4, size=(40, 40, 32))]
    split = folder / "split.json"
    split.write_text(json.dumps({"training": names[:3], "test": names[3:]}))
    write_datalist(folder, folds=3, split=split)
    return folder
