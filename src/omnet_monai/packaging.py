"""The bundle as the model zoo publishes it: a folder that works without this package installed, and its archive."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import torch
from monai.bundle import ConfigParser

import omnet_monai
from omnet_monai.demo import bundle_root
from omnet_monai.weights import load_weights

__all__ = ["BUNDLE_NAME", "LARGE_FILE", "WEIGHTS", "check_weights", "package"]

BUNDLE_NAME = "brats_mri_omnet_segmentation"
WEIGHTS = "models/model.pt"
LARGE_FILE = 25_000_000  # bytes; the zoo's repository takes no larger file

# For those who publish, not for those who use the bundle.
UNPUBLISHED_DOCS = ("publishing.md",)
# What packaging makes, and the model card that MONAI lays beside it for the Hugging Face Hub.
OWN_ENTRIES = {"LICENSE", "README.md", "configs", "docs", "large_files.yml", "models", "omnet_monai"}


def package(directory: str, bundle: str = "", weights_url: str = "") -> None:
    """
    Write the bundle's folder and its archive ``<name>_v<version>.zip``; the same input gives the same archive.

    The archive is complete, as the zoo's release is. The folder is too, unless ``weights_url`` is given: then it is
    what the zoo's repository takes, where ``large_files.yml`` stands for the weights.

    Args:
        directory: folder to write to; an earlier package in it is replaced.
        bundle: root of the bundle to package, by default the current folder if it is one, or that beside this package.
        weights_url: address from which the weights can be downloaded.

    Raises:
        ValueError: if the versions of package and bundle differ, the weights do not fit the network, the address is
            none, or the folder to replace is not a package.
    """
    root, out = bundle_root(bundle), Path(directory)
    target, archive = out / BUNDLE_NAME, out / f"{BUNDLE_NAME}_v{_version(root)}.zip"
    if weights_url and (urlparse(weights_url).scheme not in ("http", "https") or not urlparse(weights_url).netloc):
        raise ValueError(f"weights_url must be an http or https address, got {weights_url}")
    check_weights(root)
    _check_replaceable(target)
    weights = (root / WEIGHTS).read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".package", dir=out) as temporary:
        aside = Path(temporary)
        folder = _lay_out(root, aside / BUNDLE_NAME)
        _write_archive(folder, aside / archive.name)
        if weights_url:
            _replace_by_address(folder, weights_url, weights)
        replaced = aside / "replaced"
        if target.exists():
            os.replace(target, replaced)
        try:
            os.replace(folder, target)
        except BaseException:
            if replaced.exists():  # or it would go with the temporary folder
                os.replace(replaced, target)
            raise
        os.replace(aside / archive.name, archive)
    _report(target, archive, weights, weights_url)


def check_weights(root: str | Path) -> None:
    """
    Fit a bundle's weights into the network of its inference config.

    Raises:
        ValueError: if they are missing, belong to another network, or are the checkpoint of a run.
    """
    path = Path(root) / WEIGHTS
    parser = ConfigParser()
    parser.read_config(Path(root) / "configs" / "inference.json")
    load_weights(parser.get_parsed_content("network_def"), path)
    # load_weights takes a checkpoint too, MONAI does not.
    if isinstance(torch.load(path, map_location="cpu", weights_only=True).get("network"), dict):
        raise ValueError(f"weights {path} must be a bare state dict, got the checkpoint of a run")


def _version(root: Path) -> str:
    """Return the package's version, which the bundle's metadata must repeat and explain."""
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if version != omnet_monai.__version__ or version not in changelog:
        raise ValueError(
            f"{root / 'configs' / 'metadata.json'} must have the package's version {omnet_monai.__version__} and"
            f" explain it in its changelog, got version {version} and a changelog of {', '.join(changelog) or 'none'}"
        )
    return version


def _check_replaceable(target: Path) -> None:
    """Refuse to replace what holds anything beside the folders that packaging writes: someone's runs, other weights."""
    if not target.exists():
        return
    entries = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if not {"configs", "omnet_monai"} <= entries:
        raise ValueError(f"{target} must be an earlier package to be replaced, and is none")
    models = {f"models/{entry.name}" for entry in (target / "models").glob("*")}
    others = sorted((entries - OWN_ENTRIES) | (models - {WEIGHTS}))
    if others:
        raise ValueError(f"{target} must hold nothing but an earlier package to be replaced, got {', '.join(others)}")


def _lay_out(root: Path, folder: Path) -> Path:
    """Copy what is published to a new folder and return it; caches, runs and results stay behind."""
    code = Path(omnet_monai.__file__).parent
    docs = [file for file in (root / "docs").glob("[!.]*") if file.name not in UNPUBLISHED_DOCS]
    configs = [file for file in (root / "configs").glob("[!.]*") if file.suffix in (".json", ".conf")]
    files = [(file, file.relative_to(root)) for file in (root / "LICENSE", root / WEIGHTS, *configs, *docs)]
    files += [(file, file.relative_to(code.parent)) for file in code.rglob("*.py")]
    for source, path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / path)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_archive(folder: Path, path: Path) -> None:
    """Zip a folder so that neither dates nor permissions nor the order of the file system show."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(folder):
            entry = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix())  # of 1980, the format's first year
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, file.read_bytes())


def _replace_by_address(folder: Path, url: str, weights: bytes) -> None:
    """Leave the address and the hash in the place of the weights, as the zoo's CI and ``download_large_files`` read."""
    entry = {"path": WEIGHTS, "url": url, "hash_val": hashlib.sha256(weights).hexdigest(), "hash_type": "sha256"}
    lines = [f"{key}: {json.dumps(value)}" for key, value in entry.items()]
    (folder / "large_files.yml").write_text("large_files:\n  - " + "\n    ".join(lines) + "\n", encoding="utf-8")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).parent.rmdir()


def _report(folder: Path, archive: Path, weights: bytes, weights_url: str) -> None:
    """Print where everything is and what remains to be done."""
    print(f"folder:  {folder}, {sum(file.stat().st_size for file in _files(folder)) / 1e6:.1f} MB")
    print(f"archive: {archive}, {archive.stat().st_size / 1e6:.1f} MB")
    print(f"weights: {len(weights) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(weights).hexdigest()}")
    if weights_url:
        print(f"large_files.yml stands for {WEIGHTS}; the weights must lie at {weights_url}")
    elif len(weights) > LARGE_FILE:
        print(
            f"The zoo's repository takes no file over {LARGE_FILE / 1e6:.0f} MB: for a pull request there, upload the"
        )
        print("weights and give their address with --weights_url.")
