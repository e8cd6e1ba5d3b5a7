"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# The configs take a GPU where there is one; bits and label maps are compared here, which wants one kind of arithmetic.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Tests run beside each other, or start processes that do: threads would wait for each other's cores.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

from omnet_monai.datalist import write_datalist
from omnet_monai.networks import OMNet
from omnet_monai.packaging import BUNDLE_NAME, package
from omnet_monai.phantom import write_phantoms
from omnet_monai.weights import ModelFile

BUNDLE = Path(__file__).parents[1] / "bundle"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a bundle's logging.conf does to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script of benchmarks/ by its name, anew and with the scripts that it imports itself."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    for path in folder.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


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


@pytest.fixture(scope="session")
def lesion_patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three lesion patches, of one patient that is left out by default and of two that are not."""
    label = np.zeros((3, 8, 8, 8), np.uint8)
    label[:, 2:6, 2:6, 2:6] = 4
    patients = np.array(["BraTS20_Training_130", "one", "another"])
    path = tmp_path_factory.mktemp("lesions") / "lesion_patches.npz"
    image = np.ones((3, 4, 8, 8, 8), np.int8)
    np.savez(path, image=image, label=label, inside=label < 5, patient=patients, scale=np.float32(0.1))
    return path


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle whose inference config names a small network, with random weights for it."""
    root = tmp_path_factory.mktemp("small") / "bundle"
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("models", "runs", "eval", "phantoms", "mlruns"))
    inference = root / "configs" / "inference.json"
    config = json.loads(inference.read_text())
    config["network_def"]["features"] = [2, 2, 4, 4]
    config["cluster_peak"] = 0  # random weights are certain nowhere
    inference.write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = OMNet(class_counts=(4, 4, 2), features=(2, 2, 4, 4))
    ModelFile(root / "models" / "model.pt", network).save()
    return root


@pytest.fixture(scope="session")
def packaged(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that packaging makes of the small bundle; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("packaged")
    package(str(folder), str(small_bundle))
    return folder / BUNDLE_NAME
