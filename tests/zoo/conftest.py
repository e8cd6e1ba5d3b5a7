"""Run the unit tests for the model zoo in a folder laid out as its repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def zoo(packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder ``models`` with the packaged bundle in the working directory."""
    shutil.copytree(packaged, tmp_path / "models" / packaged.name)
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test with several processes takes long."""
    for item in items:
        if item.path.stem.endswith("_dist"):
            item.add_marker(pytest.mark.slow)
