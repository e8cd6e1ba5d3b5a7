"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnet_monai.files import whole_file


def test_a_file_is_written_with_its_folder_and_without_traces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.nii.gz"
    for content in ("1", "2"):
        with whole_file(path) as file:
            assert file.name.endswith(".nii.gz")  # which tells writers the format
            file.write_text(content)
        assert path.read_text() == content
        assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_midway_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as file:
            file.write_text("half a fi")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
