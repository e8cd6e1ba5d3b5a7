"""Prepared cases on disk: made once, mapped, and made anew when the case or its preparation changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import monai
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, ScaleIntensityd, Transform

from omnet_monai.caching import MappedDataset
from omnet_monai.demo import bundle_root

COUNT = "times prepared"


class Prepare(Transform):
    """Reads a number from the case's file and makes a small volume of it; tells in a file that it ran."""

    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __call__(self, case: dict) -> dict:
        log = Path(case["image"][0]).parent / COUNT
        log.write_text(log.read_text() + "x" if log.exists() else "x")
        value = self.factor * float(Path(case["image"][0]).read_text())
        image = MetaTensor(torch.full((4, 3, 3, 3), value), meta={"case": case["case"]})
        label = torch.full((1, 3, 3, 3), 2, dtype=torch.uint8)
        return {**case, "image": image, "label": label, "start": np.array([1, 2])}


class CountCases(Transform):
    """Tells in a file that it ran."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, case: dict) -> dict:
        self.log.write_text(self.log.read_text() + "x" if self.log.exists() else "x")
        return {}


@pytest.fixture
def case(tmp_path: Path) -> dict:
    (tmp_path / "a.txt").write_text("1.5")
    return {"image": [str(tmp_path / "a.txt")], "case": "a"}


def times_prepared(case: dict) -> int:
    return len((Path(case["image"][0]).parent / COUNT).read_text())


def test_a_case_is_prepared_once_for_all_datasets_of_a_folder(case: dict, tmp_path: Path) -> None:
    for _ in range(2):
        dataset = MappedDataset([case], Prepare(), tmp_path / "cache")
        for _ in range(2):
            sample = dataset[0]
    assert times_prepared(case) == 1
    assert type(sample["image"]) is torch.Tensor
    assert sample["image"].dtype == torch.float16
    assert (sample["image"] == 1.5).all()
    assert sample["label"].dtype == torch.uint8
    assert sample["case"] == "a"
    assert sample["start"].tolist() == [1, 2]


def test_the_folds_of_a_data_list_share_a_prepared_case(case: dict, tmp_path: Path) -> None:
    samples = [
        MappedDataset([case | {"patient": "p", "fold": fold}], Prepare(), tmp_path / "cache")[0] for fold in (0, 1)
    ]
    assert times_prepared(case) == 1
    assert all("fold" not in sample for sample in samples)


def test_what_is_returned_lies_in_the_file_and_not_in_memory(case: dict, tmp_path: Path) -> None:
    dataset = MappedDataset([case], Prepare(), tmp_path / "cache")
    (file,) = [dataset[0], *(tmp_path / "cache").iterdir()][1:]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    sample = dataset[0]
    assert str(file) in maps.read_text()
    sample["image"][0, 0, 0, 0] = 7  # a private page: the file is not written to
    assert (dataset[0]["image"] == 1.5).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda case: ([{**case, "order": ["t1", "t1c", "t2", "flair"]}], Prepare()),
        lambda case: ([case], Prepare(factor=2)),
        lambda case: ([case], Compose([Prepare(), ScaleIntensityd("image")])),
        lambda case: (os.utime(case["image"][0], (0, 0)), ([case], Prepare()))[1],
    ],
    ids=["the case", "an argument", "the transforms", "its file"],
)
def test_a_change_prepares_the_case_anew(case: dict, tmp_path: Path, change) -> None:
    MappedDataset([case], Prepare(), tmp_path / "cache")[0]
    MappedDataset(*change(case), tmp_path / "cache")[0]
    assert times_prepared(case) == 2


@pytest.mark.parametrize("image", ["case", "case/modalities/p1/p1_t2.nii.gz"], ids=["a folder", "one of its files"])
def test_a_change_of_a_file_that_the_list_does_not_name_prepares_the_case_anew(tmp_path: Path, image: str) -> None:
    folder = tmp_path / "case" / "modalities" / "p1"
    folder.mkdir(parents=True)
    for sequence in ("t1", "t1ce", "t2", "flair"):
        (folder / f"p1_{sequence}.nii.gz").write_text("1")
    dataset = MappedDataset([{"image": str(tmp_path / image)}], CountCases(tmp_path / COUNT), tmp_path / "cache")
    for _ in range(2):
        dataset[0]
    os.utime(folder / "p1_flair.nii.gz", (0, 0))
    dataset[0]
    assert (tmp_path / COUNT).read_text() == "xx"


@pytest.mark.parametrize("left", [0, 10, -1000, -1], ids=["nothing", "ten bytes", "most of it", "all but a byte"])
def test_a_file_that_is_not_whole_is_prepared_anew_once(case: dict, tmp_path: Path, left: int) -> None:
    dataset = MappedDataset([case], Prepare(), tmp_path / "cache")
    (file,) = [dataset[0], *(tmp_path / "cache").iterdir()][1:]
    file.write_bytes(file.read_bytes()[:left])
    for _ in range(2):
        assert (dataset[0]["image"] == 1.5).all()
    assert times_prepared(case) == 2


def test_another_monai_prepares_the_case_anew(case: dict, tmp_path: Path, monkeypatch) -> None:
    for version in ("1.5.1", "1.6.0"):
        monkeypatch.setattr(monai, "__version__", version)
        MappedDataset([case], Prepare(), tmp_path / "cache")[0]
    assert times_prepared(case) == 2


def test_a_case_that_fails_leaves_nothing_behind(case: dict, tmp_path: Path, monkeypatch) -> None:
    dataset = MappedDataset([case], Prepare(), tmp_path / "cache")
    monkeypatch.setattr(torch, "save", lambda value, file: (Path(file).write_text("half"), int("full disk")))
    with pytest.raises(ValueError, match="full disk"):
        dataset[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_told_with_the_folder_and_the_case(case: dict, tmp_path: Path, monkeypatch) -> None:
    dataset, save = MappedDataset([case], Prepare(), tmp_path / "cache"), torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: save(value, "/dev/full"))
    with pytest.raises(OSError, match=r"^case a: .*cache must have room for the prepared case, got "):
        dataset[0]
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_transforms_of_the_bundle_are_known_again_by_another_process(tmp_path: Path) -> None:
    code = (
        "from monai.bundle import ConfigParser; from omnet_monai.demo import bundle_root;"
        "from monai.data.utils import pickle_hashing; parser = ConfigParser();"
        "parser.read_config(bundle_root() / 'configs' / 'train.json');"
        "print(pickle_hashing(parser.get_parsed_content('train#preprocessing').transforms))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "train.json")
    assert other == f"{pickle_hashing(parser.get_parsed_content('train#preprocessing').transforms)}\n"
    assert len(other) > 32
