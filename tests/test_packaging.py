"""The published form of the bundle: what is in it, that it is the same each time, and what is never overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from monai.apps.utils import HashCheckError
from monai.bundle import download_large_files, push_to_hf_hub

import omnet_monai
from omnet_monai import packaging
from omnet_monai.networks import OMNet
from omnet_monai.packaging import BUNDLE_NAME, package

ARCHIVE = f"{BUNDLE_NAME}_v{omnet_monai.__version__}.zip"


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle that a test may change."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def server(bundle: Path) -> Iterator[str]:
    """Address of a local server that hands out the bundle's weights."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(bundle / "models"))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/model.pt"
        http.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_holds_what_is_published_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    for name in (
        "runs/checkpoint.pt",
        "eval/scores.csv",
        "models/model.ts",
        "configs/notes.txt",
        "configs/.train.json",
        "mlruns/1",
        "docs/.page.md.swp",
    ):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("not published")
    package(str(tmp_path / "out"), str(bundle))
    files = contents(tmp_path / "out" / BUNDLE_NAME)
    code = {name for name in files if name.startswith("omnet_monai/")}
    assert all(name.endswith(".py") for name in code)
    assert code == {f"omnet_monai/{name}" for name in contents(Path(omnet_monai.__file__).parent) if name[-3:] == ".py"}
    assert {name for name in files if name.startswith("models/")} == {"models/model.pt"}
    assert {name.split("/")[0] for name in files} == {"LICENSE", "configs", "docs", "models", "omnet_monai"}
    assert b"not published" not in files.values()
    assert "docs/publishing.md" not in files


def test_every_page_finds_the_files_it_links_to(packaged: Path) -> None:
    for page in (packaged / "docs").glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_model_card_has_the_sections_that_users_of_the_zoo_know(packaged: Path) -> None:
    card = (packaged / "docs" / "README.md").read_text()
    assert re.findall(r"^## (.*)", card, flags=re.MULTILINE) == [
        "Data",
        "Training configuration",
        "Performance",
        "MONAI Bundle Commands",
        "Limitations",
        "Authors",
        "Tags",
        "System Configuration",
        "References",
        "License",
    ]
    assert card.startswith("# Model Overview\n")
    for section in ("Preprocessing", "Memory", "Input", "Output"):
        assert f"\n### {section}\n" in card


def test_the_same_input_gives_the_same_archive(bundle: Path, tmp_path: Path) -> None:
    package(str(tmp_path / "one"), str(bundle))
    for file in bundle.rglob("*.json"):
        os.utime(file, (0, 0))
        file.chmod(0o600)
    package(str(tmp_path / "two"), str(bundle))
    archive = (tmp_path / "one" / ARCHIVE).read_bytes()
    assert (tmp_path / "two" / ARCHIVE).read_bytes() == archive
    package(str(tmp_path / "three"), str(tmp_path / "one" / BUNDLE_NAME))  # a package, packaged
    assert (tmp_path / "three" / ARCHIVE).read_bytes() == archive
    package(str(tmp_path / "one"), str(tmp_path / "one" / BUNDLE_NAME), "https://example.org/model.pt")  # in its place
    assert (tmp_path / "one" / ARCHIVE).read_bytes() == archive


def test_the_archive_holds_the_folder(packaged: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packaged.parent / ARCHIVE) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        archive.extractall(tmp_path)
    assert contents(tmp_path / BUNDLE_NAME) == contents(packaged)


@pytest.mark.filterwarnings("ignore:parsing large file config:UserWarning")
def test_an_address_stands_for_the_weights_in_the_folder_and_brings_them_back(
    server: str, bundle: Path, packaged: Path, tmp_path: Path
) -> None:
    package(str(tmp_path / "out"), str(bundle), server)
    folder = tmp_path / "out" / BUNDLE_NAME
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    assert (entry["path"], entry["url"], entry["hash_type"]) == ("models/model.pt", server, "sha256")
    assert contents(folder).keys() ^ contents(packaged).keys() == {"models/model.pt", "large_files.yml"}
    assert (tmp_path / "out" / ARCHIVE).read_bytes() == (packaged.parent / ARCHIVE).read_bytes()
    download_large_files(bundle_path=str(folder))
    assert (folder / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()

    (folder / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").write_bytes(b"something else lies at the address")
    with pytest.raises(HashCheckError, match="sha256 hash check of downloaded file failed"):
        download_large_files(bundle_path=str(folder))
    assert not (folder / "models" / "model.pt").exists()


def test_weights_too_large_for_the_zoo_are_named_with_what_to_do(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(str(tmp_path / "out"), str(bundle))
    assert "--weights_url" not in capsys.readouterr().out
    monkeypatch.setattr(packaging, "LARGE_FILE", 1000)
    package(str(tmp_path / "out"), str(bundle))
    assert "--weights_url" in capsys.readouterr().out


def test_a_new_package_replaces_the_old_one_whole(bundle: Path, tmp_path: Path) -> None:
    package(str(tmp_path / "out"), str(bundle))
    (tmp_path / "out" / BUNDLE_NAME / "omnet_monai" / "outdated.py").write_text("")
    (bundle / "docs" / "README.md").write_text("# Model Overview, new\n")
    package(str(tmp_path / "out"), str(bundle))
    assert (tmp_path / "out" / BUNDLE_NAME / "docs" / "README.md").read_text() == "# Model Overview, new\n"
    assert not (tmp_path / "out" / BUNDLE_NAME / "omnet_monai" / "outdated.py").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {BUNDLE_NAME, ARCHIVE}


def test_packaging_that_fails_midway_leaves_the_old_package_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(str(tmp_path / "out"), str(bundle))
    old = contents(tmp_path / "out")

    def fail(*args: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(packaging, "_write_archive", fail)
    (bundle / "docs" / "README.md").write_text("new")
    with pytest.raises(OSError, match="no space left"):
        package(str(tmp_path / "out"), str(bundle))
    assert contents(tmp_path / "out") == old
    assert {path.name for path in (tmp_path / "out").iterdir()} == {BUNDLE_NAME, ARCHIVE}


def test_the_old_package_is_put_back_if_the_new_one_cannot_take_its_place(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(str(tmp_path), str(bundle))
    old = contents(tmp_path)
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / BUNDLE_NAME and Path(source).name == BUNDLE_NAME:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        package(str(tmp_path), str(bundle))
    assert contents(tmp_path) == old


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("runs/checkpoint.pt", "nothing but an earlier package to be replaced, got runs"),
        ("models/tuned.pt", r"nothing but an earlier package to be replaced, got models/tuned\.pt"),
        (None, "must be an earlier package to be replaced, and is none"),
    ],
    ids=["runs", "other weights", "no package"],
)
def test_what_packaging_did_not_write_is_not_replaced(
    file: str | None, message: str, bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / BUNDLE_NAME
    if file is not None:
        package(str(target.parent), str(bundle))
    (target / (file or "notes.txt")).parent.mkdir(parents=True, exist_ok=True)
    (target / (file or "notes.txt")).write_text("precious")
    before = contents(target)
    with pytest.raises(ValueError, match=message):
        package(str(target.parent), str(bundle))
    assert contents(target) == before


def _remove_weights(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()


def _take_weights_of_a_variant(bundle: Path) -> None:
    torch.save(
        OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4), attention="none").state_dict(),
        bundle / "models" / "model.pt",
    )


def _take_the_checkpoint_of_a_run(bundle: Path) -> None:
    path = bundle / "models" / "model.pt"
    torch.save({"network": torch.load(path, weights_only=True)}, path)


def _forget_the_changelog(bundle: Path) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "changelog": {"0.0.1": "first"}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove_weights, "weights must be a file, got"),
        (_take_weights_of_a_variant, r"belong to another network: .* missing"),
        (_take_the_checkpoint_of_a_run, "must be a bare state dict, got the checkpoint of a run"),
        (_forget_the_changelog, r"explain it in its changelog, got version \S+ and a changelog of 0\.0\.1"),
    ],
    ids=["no weights", "weights of a variant", "a checkpoint", "no changelog"],
)
def test_a_bundle_that_cannot_be_published_is_named_and_nothing_is_written(
    spoil: Any, message: str, bundle: Path, tmp_path: Path
) -> None:
    spoil(bundle)
    with pytest.raises(ValueError, match=message):
        package(str(tmp_path / "out"), str(bundle))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["model.pt", "ftp://example.org/model.pt", "https:///model.pt"])
def test_only_an_address_stands_for_the_weights(address: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights_url must be an http or https address, got"):
        package(str(tmp_path / "out"), str(bundle), address)


def test_the_hub_gets_the_folder_its_model_card_and_the_version_as_tag(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Recorder:
        def __init__(self, token: str | None) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda **arguments: calls.append((name, arguments))

    monkeypatch.setattr("monai.bundle.scripts.huggingface_hub", SimpleNamespace(HfApi=Recorder))
    folder = Path(shutil.copytree(packaged, tmp_path / BUNDLE_NAME))
    push_to_hf_hub(
        repo=f"someone/{BUNDLE_NAME}",
        name=BUNDLE_NAME,
        bundle_dir=str(tmp_path),
        private=False,
        version=omnet_monai.__version__,
        tag_as_latest_version=True,
    )
    assert [name for name, _ in calls] == ["create_repo", "upload_folder", "create_tag", "create_tag"]
    assert {arguments["repo_id"] for _, arguments in calls} == {f"someone/{BUNDLE_NAME}"}
    assert calls[1][1]["folder_path"] == str(folder)
    assert [arguments["tag"] for _, arguments in calls[2:]] == [omnet_monai.__version__, "latest_version"]
    header, card = (folder / "README.md").read_text().split("\n---\n")
    assert card == (folder / "docs" / "README.md").read_text()
    # What MONAI reads off LICENSE is true of code and configs alone; publishing.md says how to put it right.
    assert "license: apache-2.0" in header
    package(str(tmp_path), str(folder))  # the card that MONAI left does not hinder the next version
