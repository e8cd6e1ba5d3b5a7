"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnet_monai.files import keep_settings, read_object, sha256, whole_file


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


def test_a_full_disk_is_told_with_the_file_that_found_no_space(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*records/p1\.json'"),
        whole_file(tmp_path / "records" / "p1.json"),
    ):
        raise OSError(28, "No space left on device")


def test_the_digest_of_files_is_that_of_what_is_in_them_in_their_order(tmp_path: Path) -> None:
    for name, content in (("first", b"ab"), ("second", b"c")):
        (tmp_path / name).write_bytes(content)
    # The example of FIPS 180-2: "abc".
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "first", tmp_path / "second") == known
    assert sha256(tmp_path / "second", tmp_path / "first") != known


def test_what_results_are_of_is_noted_and_held_to(tmp_path: Path) -> None:
    file = tmp_path / "new" / "settings.json"
    for _ in range(2):
        keep_settings(file, {"version": "1", "overrides": "{}"})
    with pytest.raises(ValueError, match=r"settings\.json must be of the same .* differs in version, weights$"):
        keep_settings(file, {"version": "2", "overrides": "{}", "weights": "a"})
    keep_settings(file, {"version": "1", "overrides": "{}"})  # what was refused was not noted


def test_a_folder_in_the_place_of_a_file_is_not_called_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"datalist must be a JSON file, got {tmp_path}, which is a folder$"):
        read_object("datalist", tmp_path)
    with pytest.raises(ValueError, match=r"got .*absent\.json, which does not exist$"):
        read_object("datalist", tmp_path / "absent.json")
