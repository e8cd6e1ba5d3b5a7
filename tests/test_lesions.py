"""Lesion patches become cases on the grid of 1 mm that task patches can be cut from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from omnet_monai.cropping import RandCropByTaskd
from omnet_monai.demo import bundle_root
from omnet_monai.lesions import LesionPatches, held_out_patients

PATIENTS = ["a", "b", "b", "c"]


def arrays(number: int = 4, side: int = 8) -> dict[str, np.ndarray]:
    """A brain of 10 throughout, in it a cube of code 4; the last planes of the third axis lie beyond the volume."""
    label = np.zeros((number, side, side, side), np.uint8)
    label[:, 2:6, 2:6, 2:6] = 4
    inside = np.ones(label.shape, bool)
    inside[..., -2:] = False
    return {
        "image": np.full((number, 4, side, side, side), 10, np.int8) * inside[:, None],
        "label": label,
        "inside": inside,
        "patient": np.array(PATIENTS[:number]),
        "scale": np.float32(0.1),
    }


def saved(folder: Path, **changed: np.ndarray) -> Path:
    np.savez(folder / "lesions.npz", **(arrays() | changed))
    return folder / "lesions.npz"


def test_a_patch_is_brought_to_one_millimeter_in_inner_classes(tmp_path: Path) -> None:
    case = LesionPatches(saved(tmp_path), spacing=[2, 2, 1])[0]
    assert case["image"].shape == (4, 16, 16, 8)
    assert case["label"].shape == (1, 16, 16, 8)
    assert case["image"].dtype == case["label"].dtype == torch.float16
    assert sorted(case["label"].unique().tolist()) == [0, 3]
    assert int((case["label"] == 3).sum()) == 8 * 8 * 4  # the cube of 4 voxels a side, twice as wide in plane


def test_what_lies_beyond_the_volume_is_background(tmp_path: Path) -> None:
    beyond = np.ones((4, 8, 8, 8), np.uint8) * 4
    case = LesionPatches(saved(tmp_path, label=beyond), spacing=[1, 1, 1])[0]
    assert torch.equal(case["image"][..., :6], torch.ones(4, 8, 8, 6, dtype=torch.float16))
    assert not case["image"][..., 6:].any()
    assert not case["label"][..., 6:].any()
    assert (case["label"][..., :6] == 3).all()


def test_of_a_volume_that_is_stretched_brain_ends_where_half_a_voxel_is_brain(tmp_path: Path) -> None:
    # Six of eight voxels are brain, whatever the file has beyond; twice as many that lie at 0.25 and 0.75 of these.
    beyond = np.full((4, 4, 8, 8, 8), 10, np.int8)
    image = LesionPatches(saved(tmp_path, image=beyond), spacing=[1, 1, 2])[0]["image"]
    assert image[..., :12].all()
    assert not image[..., 12:].any()


def test_patients_held_out_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    file = saved(tmp_path)
    assert len(LesionPatches(file, [1, 1, 1])) == 4
    assert len(LesionPatches(file, [1, 1, 1], exclude=["b", "unknown"])) == 2
    assert caplog.messages == ["4 lesion patches, 0 left out: of nobody.", "2 lesion patches, 2 left out: of b."]


def test_the_patients_of_a_fold_and_of_the_test_section_are_held_out(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    training = [{"image": "a1", "case": "a1", "patient": "a", "fold": 0}, {"image": "b", "case": "b", "fold": 1}]
    path.write_text(json.dumps({"training": training}))
    assert held_out_patients(path) == []
    assert held_out_patients(path, fold=0) == ["a", "a1"]
    path.write_text(json.dumps({"training": training, "test": [{"image": "c", "case": "c"}, {"image": "d"}]}))
    assert held_out_patients(path) == ["c"]
    assert held_out_patients(path, fold=1) == ["b", "c"]


@pytest.mark.parametrize("patient", [[12, 34, 34, 5], [b"12", b"34", b"34", b"5"]], ids=["numbers", "bytes"])
def test_patients_held_out_are_left_out_whatever_type_their_names_have(tmp_path: Path, patient: list[Any]) -> None:
    file = saved(tmp_path, patient=np.array(patient))
    excludes: list[list[Any]] = [["34", "6"], [34]]  # the second as a command line has it
    assert [len(LesionPatches(file, [1, 1, 1], exclude=exclude)) for exclude in excludes] == [2, 2]


def test_a_test_section_that_cannot_be_read_holds_nobody_back_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    twice = [{"image": "c", "case": "c"}, {"image": "other", "case": "c"}]
    path.write_text(json.dumps({"training": [{"image": "a", "case": "a"}], "test": twice}))
    with pytest.raises(ValueError, match=r"datalist\.json"):
        held_out_patients(path)
    with pytest.raises(ValueError, match=r"datalist must be a JSON file, got .*nothing\.json, which does not exist"):
        held_out_patients(tmp_path / "nothing.json")


def test_a_fold_is_not_trained_on_lesions_of_whom_it_holds_out(tmp_path: Path) -> None:
    """By lesions.json, without a list of names."""
    entries = [{"image": name, "case": name, "fold": fold} for fold, name in enumerate(("a", "b"))]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries, "test": []}))
    file = saved(tmp_path)
    left = {}
    for fold in (None, 0, 1):
        parser = ConfigParser()
        parser.read_config([bundle_root() / "configs" / name for name in ("train.json", "lesions.json")])
        parser.update({"dataset_dir": str(tmp_path), "lesions_file": str(file), "fold": fold})
        left[fold] = len(parser.get_parsed_content("lesions"))
    assert left == {None: 4, 0: 3, 1: 2}  # one patch of a, two of b


def test_task_patches_are_cut_from_it(tmp_path: Path) -> None:
    crop = RandCropByTaskd([4, 4, 4], num_samples=1, margin=0.25)
    patches = crop.set_random_state(0)(LesionPatches(saved(tmp_path), [1, 1, 1])[0])
    assert [patch["task"] for patch in patches] == [0, 1, 2]
    assert all(patch["image"].shape == (4, 6, 6, 6) for patch in patches)


def test_a_file_without_an_array_is_refused_by_its_name(tmp_path: Path) -> None:
    contents = arrays()
    del contents["inside"]
    np.savez(tmp_path / "broken.npz", **contents)
    with pytest.raises(ValueError, match=r"broken\.npz must hold the arrays inside, it has"):
        LesionPatches(tmp_path / "broken.npz", [1, 1, 1])


def test_arrays_of_different_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lesions\.npz: image \(4, 4, 8, 8, 8\), label \(3, 8, 8, 8\)"):
        LesionPatches(saved(tmp_path, label=arrays(3)["label"]), [1, 1, 1])


def test_codes_of_another_scheme_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label codes of brats2017 must be among .*, got \[3\.0\]"):
        LesionPatches(saved(tmp_path, label=arrays()["label"] // 4 * 3), [1, 1, 1])[0]
