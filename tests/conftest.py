"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real cases that the variable OMNET_DATA names; a test that asks for it is skipped without one."""
    folder = os.environ.get("OMNET_DATA")
    if not folder:
        pytest.skip("needs real cases: set OMNET_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.fail(f"OMNET_DATA must name an existing folder, got {folder}")
    return Path(folder)
