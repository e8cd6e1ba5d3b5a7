"""The dry run of the model zoo's checks: what it finds wrong, and that it passes what packaging makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from omnet_monai.networks import OMNet
from omnet_monai.packaging import BUNDLE_NAME
from omnet_monai.zoo import check


@pytest.fixture
def folder(packaged: Path, tmp_path: Path) -> Path:
    """A packaged bundle that a test may change."""
    return Path(shutil.copytree(packaged, tmp_path / BUNDLE_NAME))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_checks_that_pass_are_a_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(str(folder), only=("name", "sizes", "large_files", "files", "weights", "version"))
    assert [line.split(":")[0] for line in lines(capsys)] == [
        f"ok      {name}" for name in ("name", "sizes", "large_files", "files", "weights", "version")
    ]


def test_a_wrong_folder_name_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="1 of 1 checks failed: name"):
        check(str(folder.rename(folder.with_name("omnet"))), only="name")
    assert lines(capsys) == [f"FAILED  name: the folder must be called {BUNDLE_NAME}, got omnet"]


def test_missing_weights_and_terms_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "models" / "model.pt").unlink()
    (folder / "docs" / "data_license.txt").unlink()
    with pytest.raises(ValueError, match="2 of 2 checks failed: files, weights"):
        check(str(folder), only=("files", "weights"))
    files, weights = lines(capsys)
    assert files == "FAILED  files: the folder must hold models/model.pt, docs/data_license.txt"
    assert "weights must be a file, got" in weights


def test_weights_of_a_variant_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(
        OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4), attention="se").state_dict(),
        folder / "models" / "model.pt",
    )
    with pytest.raises(ValueError, match="checks failed: weights"):
        check(str(folder), only="weights")
    assert "belong to another network" in lines(capsys)[0]


def test_a_file_over_the_zoos_limit_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / "models" / "model.pt", "ab") as file:
        file.truncate(26_000_000)
    with pytest.raises(ValueError, match="checks failed: sizes"):
        check(str(folder), only="sizes")
    assert "no file may be over 25 MB, got models/model.pt of 26.0 MB" in lines(capsys)[0]


def test_a_version_without_an_entry_in_the_changelog_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = folder / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "version": "9.9.9"}))
    with pytest.raises(ValueError, match="checks failed: version"):
        check(str(folder), only="version")
    assert "changelog must explain the version 9.9.9" in lines(capsys)[0]


def test_metadata_that_breaks_its_schema_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"properties": {"authors": {"type": "array"}}}))
    with pytest.raises(ValueError, match="checks failed: metadata"):
        check(str(folder), schema=str(schema), only="metadata")
    assert "FAILED  metadata: ValueError: 'omnet-monai contributors' is not of type 'array'" in lines(capsys)[0]


def test_large_files_without_a_hash_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "large_files:\n  - path: models/model.pt\n    url: http://127.0.0.1/m.pt\n    hash_type: sha256\n"
    (folder / "large_files.yml").write_text(text)
    with pytest.raises(ValueError, match="checks failed: large_files"):
        check(str(folder), only="large_files")
    assert "must state hash_val and hash_type: sha256" in lines(capsys)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": "absent"}, "must be a packaged bundle, got absent"),
        ({"only": "names"}, "only must name some of name, sizes, .*, got names"),
        ({"python": "absent/python"}, "python must be an interpreter, got absent/python"),
    ],
    ids=["folder", "check", "interpreter"],
)
def test_what_is_not_there_is_named(arguments: dict[str, str], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check(**{"folder": str(folder), **arguments})


@pytest.mark.slow
def test_a_packaged_bundle_passes_every_check_but_style(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Style needs tools that only the zoo's environment has; the schema here is a part of the real one."""
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"required": ["version", "task", "authors", "network_data_format"]}))
    names = ("name", "sizes", "large_files", "files", "weights", "version", "metadata")
    check(str(folder), schema=str(schema), only=(*names, "network", "torchscript", "unit_tests", "processes"))
    assert [line[:2] for line in lines(capsys)] == ["ok"] * 11
