"""Scoring label maps that exist already: what is found, what is refused, and that one bad case stops no other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from processes import run_python

from omnet_monai import scoring
from omnet_monai.datalist import read_cases
from omnet_monai.metrics import IN_UNITS
from omnet_monai.pictures import save_overlay
from omnet_monai.regions import EDEMA
from omnet_monai.results import read_scores
from omnet_monai.scoring import find_prediction, score, score_case


@pytest.fixture
def predictions(phantoms: Path, tmp_path: Path) -> Path:
    """A folder with a perfect label map of each training case, in the codes of BraTS 2017."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for case in read_cases(phantoms / "datalist.json"):
        shutil.copy(case["label"], folder / f"{case['case']}_seg.nii.gz")
    return folder


def change(file: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    old = nib.load(file)
    volume = np.asanyarray(old.dataobj) if array is None else array
    image = nib.Nifti1Image(volume.astype(np.uint8), old.affine if affine is None else affine)
    file.unlink()
    nib.save(image, file)


def codes(file: Path) -> np.ndarray:
    return np.asanyarray(nib.load(file).dataobj).copy()


def first(phantoms: Path) -> dict:
    return read_cases(phantoms / "datalist.json")[0]


def error_of(phantoms: Path, predictions: Path, scheme: str | None = None) -> str:
    return score_case(first(phantoms), predictions, predictions / "pictures", scheme).error


def test_perfect_label_maps_have_perfect_scores_and_a_report(phantoms: Path, predictions: Path) -> None:
    score(str(predictions), str(phantoms / "datalist.json"), section="training")
    scores = read_scores(predictions / "scores.csv")
    assert sorted(scores) == sorted(case["case"] for case in read_cases(phantoms / "datalist.json"))
    for values in scores.values():
        assert {v for column, v in values.items() if not column.startswith(IN_UNITS)} == {1.0}
        assert {v for column, v in values.items() if column.startswith(IN_UNITS)} == {0.0}
    assert len(list((predictions / "pictures").glob("*.png"))) == len(scores)
    assert (predictions / "report.html").is_file()


def test_without_a_folder_for_pictures_none_is_drawn_and_the_scores_are_the_same(
    phantoms: Path, predictions: Path
) -> None:
    case = first(phantoms)
    assert score_case(case, predictions) == score_case(case, predictions, predictions / "pictures")
    assert [path.stem for path in predictions.rglob("*.png")] == [case["case"]]


def test_no_picture_is_drawn_where_none_is_wanted(phantoms: Path, predictions: Path) -> None:
    score(str(predictions), str(phantoms / "datalist.json"), "training", pictures=False)
    assert not list(predictions.rglob("*.png"))
    assert "<img" not in (predictions / "report.html").read_text()
    assert len(read_scores(predictions / "scores.csv")) == 3


def test_volumes_are_those_of_the_file(phantoms: Path, predictions: Path) -> None:
    case = first(phantoms)
    file = predictions / f"{case['case']}_seg.nii.gz"
    voxel = np.prod(nib.load(file).header.get_zooms()) / 1000
    truth = codes(file)
    change(file, np.where(truth == 4, 0, truth))
    values = score_case(case, predictions, predictions / "pictures").values
    assert values["truth_ml_ET"] == pytest.approx((truth == 4).sum() * voxel)
    assert values["pred_ml_ET"] == 0.0
    assert values["pred_ml_WT"] == pytest.approx(((truth == 1) | (truth == 2)).sum() * voxel)


@pytest.mark.parametrize("change_of", ["shape", "axes", "origin"])
def test_a_prediction_on_another_grid_is_refused(phantoms: Path, predictions: Path, change_of: str) -> None:
    file = predictions / f"{first(phantoms)['case']}_seg.nii.gz"
    affine = nib.load(file).affine.copy()
    if change_of == "shape":
        change(file, codes(file)[1:])
        assert "files must share a spatial shape, got (39, 40, 32) beside (40, 40, 32)" in error_of(
            phantoms, predictions
        )
    elif change_of == "axes":
        change(file, affine=affine @ np.diag([1, 1, 2, 1]))
        assert "axes and spacing must agree" in error_of(phantoms, predictions)
    else:
        affine[0, 3] += 2 * affine[0, 0]
        change(file, affine=affine)
        assert "origins must agree within 0.5 voxel, got 2.00 voxels" in error_of(phantoms, predictions)


def test_codes_of_two_schemes_are_refused(phantoms: Path, predictions: Path) -> None:
    file = predictions / f"{first(phantoms)['case']}_seg.nii.gz"
    truth = codes(file)
    assert "codes of msd must be among [0, 1, 2, 3], got [4.0]" in error_of(phantoms, predictions, "msd")
    newer = np.where(truth == 4, 3, truth)
    change(file, newer)
    assert "codes of brats2017 must be among [0, 1, 2, 4], got [3.0]" in error_of(phantoms, predictions, "brats2017")
    newer[0, 0, 0] = 4
    change(file, newer)
    assert "must not hold both 3 and 4: name its scheme" in error_of(phantoms, predictions)
    newer[0, 0, 0] = 7
    change(file, newer)
    assert "got [7.0]" in error_of(phantoms, predictions)


@pytest.mark.parametrize("scheme", ["brats2023", None], ids=str)
def test_a_prediction_in_other_codes_than_the_truth_scores_the_same(
    phantoms: Path, predictions: Path, scheme: str | None
) -> None:
    file = predictions / f"{first(phantoms)['case']}_seg.nii.gz"
    change(file, np.where(codes(file) == 4, 3, codes(file)))
    assert score_case(first(phantoms), predictions, predictions / "pictures", scheme).values["dice_ET"] == 1.0


def test_a_prediction_is_found_by_its_cases_name_alone(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b_seg.nii", "c-seg.nii.gz", "aa.nii.gz", "d.nii", "d_seg.nii.gz"):
        (tmp_path / name).touch()
    assert [find_prediction(tmp_path, case).name for case in "abc"] == ["a.nii.gz", "b_seg.nii", "c-seg.nii.gz"]
    with pytest.raises(ValueError, match=r"case d: .* must hold one prediction .*, got d\.nii, d_seg\.nii\.gz"):
        find_prediction(tmp_path, "d")
    with pytest.raises(ValueError, match=r"case e: .* got none"):
        find_prediction(tmp_path, "e")


def test_one_bad_case_is_marked_the_rest_is_scored_and_the_exit_status_tells(
    phantoms: Path, predictions: Path, tmp_path: Path
) -> None:
    bad = first(phantoms)["case"]
    (predictions / f"{bad}_seg.nii.gz").unlink()
    datalist = str(phantoms / "datalist.json")
    words = ["score", str(predictions), datalist, "--section", "training", "--output", str(tmp_path / "out")]
    done = run_python(["omnet_monai", *words], tmp_path)
    assert done.returncode == 1
    assert f"cases not scored, see {tmp_path / 'out' / 'scores.csv'}: {bad}" in done.stderr.splitlines()[-1]
    assert f"not scored: case {bad}: {predictions} must hold one prediction" in done.stdout
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert len(rows) == 3
    assert {name: bool(row["error"]) for name, row in rows.items()} == {name: name == bad for name in rows}
    assert not list(predictions.glob("*.csv"))


def test_cases_on_other_grids_and_in_other_codes_are_marked_beside_the_one_that_is_scored(
    phantoms: Path, predictions: Path
) -> None:
    moved, recoded, fine = (case["case"] for case in read_cases(phantoms / "datalist.json"))
    affine = nib.load(predictions / f"{moved}_seg.nii.gz").affine.copy()
    affine[0, 3] += 5
    change(predictions / f"{moved}_seg.nii.gz", affine=affine)
    change(predictions / f"{recoded}_seg.nii.gz", np.full_like(codes(predictions / f"{recoded}_seg.nii.gz"), 3))
    with pytest.raises(ValueError, match=rf"cases not scored, see .*scores\.csv: {moved}, {recoded}"):
        score(str(predictions), str(phantoms / "datalist.json"), "training", scheme="brats2017")
    with open(predictions / "scores.csv", newline="") as file:
        errors = {row["case"]: row["error"] for row in csv.DictReader(file)}
    assert "origins must agree" in errors[moved]
    assert "codes of brats2017 must be among" in errors[recoded]
    assert errors[fine] == ""
    page = (predictions / "report.html").read_text()
    assert page.count("Not scored:") == 2
    assert "1 of 3 cases scored" in page


def test_a_case_that_lost_an_image_is_an_error_of_its_own(phantoms: Path, predictions: Path) -> None:
    case = first(phantoms)
    case["image"][2] = str(predictions / "absent.nii.gz")
    result = score_case(case, predictions, predictions / "pictures")
    assert (result.case, result.values) == (case["case"], {})
    assert "absent.nii.gz: missing sequence" in result.error


def test_cases_of_a_list_without_names_have_those_of_their_files(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "maps"):
        (tmp_path / folder).mkdir()
    label = nib.Nifti1Image(np.pad(np.full((4, 4, 4), 2, np.uint8), 2), np.eye(4))
    for name in ("BRATS_001", "BRATS_002"):
        nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 4), np.float32), np.eye(4)), tmp_path / f"imagesTr/{name}.nii.gz")
        nib.save(label, tmp_path / f"labelsTr/{name}.nii.gz")
        nib.save(label, tmp_path / f"maps/{name}.nii.gz")
    (tmp_path / "imagesTr/BRATS_002.nii.gz").write_bytes(b"torn")
    entries = [{"image": f"imagesTr/BRATS_00{n}.nii.gz", "label": f"labelsTr/BRATS_00{n}.nii.gz"} for n in (1, 2)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    arguments = str(tmp_path / "maps"), str(tmp_path / "dataset.json"), "training"
    with pytest.raises(ValueError, match=r"cases not scored, see .*scores\.csv: BRATS_002"):
        score(*arguments)
    table = (tmp_path / "maps/scores.csv").read_text()
    assert [line.split(",")[0] for line in table.splitlines()] == ["case", "BRATS_001", "BRATS_002"]
    other = tmp_path / "other.csv"
    other.write_text(table.replace("BRATS_001", "BRATS_003"))
    with pytest.raises(ValueError, match=r"other\.csv must have cases in common with what is scored, got none"):
        score(*arguments, compare_to=str(other))


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError("disk full"), "disk full"), (ValueError(), "ValueError")],
    ids=["without the case", "without a text"],
)
def test_every_error_names_its_case(
    phantoms: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def fail(*masks: object) -> None:
        raise error

    monkeypatch.setattr(scoring, "score_regions", fail)
    assert error_of(phantoms, predictions) == f"case {first(phantoms)['case']}: {expected}"


def test_a_picture_that_cannot_be_drawn_costs_no_scores(
    phantoms: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*volumes: object, **how: object) -> None:
        raise OSError("disk full")

    undrawn, datalist = first(phantoms)["case"], str(phantoms / "datalist.json")
    score(str(predictions), datalist, "training")
    draw = scoring.save_overlay
    monkeypatch.setattr(
        scoring, "save_overlay", lambda *v, **how: (fail if how["title"] == undrawn else draw)(*v, **how)
    )
    score(str(predictions), datalist, "training")
    assert {values["dice_ET"] for values in read_scores(predictions / "scores.csv").values()} == {1.0}
    assert (predictions / "report.html").read_text().count("<img") == 2  # of three, none of the run before
    assert f"case {undrawn}: no picture could be drawn, got OSError: disk full" in caplog.messages


def test_a_4d_file_is_drawn_in_the_order_of_its_channels(
    phantoms: Path, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, drawn = first(phantoms), []
    monkeypatch.setattr(scoring, "save_overlay", lambda image, *others, **how: drawn.append(image.clone()))
    images = [nib.load(file) for file in case["image"]]
    volume = np.stack([np.asarray(image.dataobj) for image in reversed(images)], axis=-1)
    nib.save(nib.Nifti1Image(volume, images[0].affine), tmp_path / "stacked.nii")
    stacked = case | {"image": str(tmp_path / "stacked.nii")}
    for entry, order in ((case, None), (stacked, ("flair", "t2", "t1c", "t1"))):
        assert score_case(entry, predictions, predictions / "pictures", order=order).error == ""
    assert torch.equal(*drawn)


def test_axes_that_are_not_at_right_angles_keep_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = torch.eye(4, dtype=torch.float64)
    affine[0, 1] = 0.75  # the second axis has steps of 1.25 mm, the determinant is 1
    truth = MetaTensor(torch.zeros(1, 12, 12, 12, dtype=torch.uint8), affine=affine)
    truth[:, :10, :10, :10] = EDEMA
    values = scoring._values(truth.as_tensor(), truth)
    assert (values["truth_ml_WT"], values["pred_ml_WT"]) == pytest.approx((1, 1))
    absent = MetaTensor(torch.zeros(truth.shape, dtype=torch.uint8), affine=affine)
    assert scoring._values(truth.as_tensor(), absent)["false_ml_WT"] == pytest.approx(1)
    captions: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_ylabel", lambda axis, text, **how: captions.append(text))
    save_overlay(MetaTensor(torch.rand(4, 12, 12, 12), affine=affine), truth, tmp_path / "p1.png")
    assert captions[0] == "WT on FLAIR\nprediction 1.0 ml"


def test_no_folder_and_no_scheme_are_the_users_mistakes(phantoms: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"predictions must be a folder of label maps, got .*absent"):
        score(str(tmp_path / "absent"), str(phantoms / "datalist.json"))
    with pytest.raises(ValueError, match=r"label scheme must be one of brats2015, .*, got 'brats'"):
        score(str(predictions), str(phantoms / "datalist.json"), scheme="brats")


def test_a_second_scoring_lists_differences_to_the_first(phantoms: Path, predictions: Path, tmp_path: Path) -> None:
    datalist = str(phantoms / "datalist.json")
    score(str(predictions), datalist, "training", output=str(tmp_path / "first"))
    for file in predictions.glob("*.nii.gz"):
        change(file, np.zeros_like(codes(file)))
    first_scores = str(tmp_path / "first" / "scores.csv")
    score(str(predictions), datalist, "training", output=str(tmp_path / "second"), compare_to=first_scores)
    differences = json.loads((tmp_path / "second" / "scores.json").read_text())["differences"]["summary"]
    assert differences["dice_WT"] == {"mean": -1.0, "standard_error": 0.0}
    assert differences["specificity_WT"] == {"mean": 0.0, "standard_error": 0.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("case,dice_WT\n", "must have a column for every metric")],
    ids=["a slip of the keyboard", "of another version"],
)
def test_scores_that_cannot_be_compared_with_are_refused_before_anything_is_scored(
    phantoms: Path, predictions: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    other = tmp_path / "other.csv"
    if content is not None:
        other.write_text(content)
    with pytest.raises(ValueError, match=message):
        score(str(predictions), str(phantoms / "datalist.json"), "training", compare_to=str(other))
    assert not (predictions / "pictures").exists()


def test_a_label_map_with_a_broken_header_is_an_error_of_its_own(phantoms: Path, predictions: Path) -> None:
    found = predictions / f"{first(phantoms)['case']}_seg.nii.gz"
    file = found.with_suffix("")
    nib.save(nib.load(found), file)
    found.unlink()
    content = bytearray(file.read_bytes())
    content[70:72] = (99).to_bytes(2, "little")  # a code of no data type
    file.write_bytes(bytes(content))
    assert "file must be readable, got HeaderDataError" in error_of(phantoms, predictions)
