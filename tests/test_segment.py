"""Cases segmented from the command line: what is written, what fails alone, what is taken up again."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
import weakref
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, SpatialCrop
from processes import run_python

from omnet_monai import __main__ as command_line
from omnet_monai import segmentation
from omnet_monai.demo import inference_config
from omnet_monai.files import whole_file
from omnet_monai.images import find_images
from omnet_monai.outputs import LOCK, OPTIONS, sole_run
from omnet_monai.regions import regions_from_classes
from omnet_monai.segment import PRESETS, segment
from omnet_monai.uncertainty import chance_of_error

BUNDLE = Path(__file__).parents[1] / "bundle"
NAMES = ("t1", "t1ce", "t2", "flair")
SIGNS = list(product((1, -1), repeat=3))
WITHOUT_T2 = "missing t2; --allow_missing segments such a case, at a loss"


def run(bundle: Path, *cases: Path, output: Path, **settings: Any) -> dict[str, dict[str, str]]:
    """Segment with a small network, and return the rows of the table by case."""
    try:
        segment(*map(str, cases), output=str(output), bundle=str(bundle), **settings)
    finally:
        rows = read_table(output)
    return rows


def read_table(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "segmentation.csv", newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def copy_case(phantoms: Path, folder: Path, number: int = 0) -> Path:
    """Copy a generated case and return its folder."""
    return Path(shutil.copytree(phantoms / f"phantom_{number:03}", folder / f"phantom_{number:03}"))


def one_file(phantoms: Path, path: Path, order: tuple[int, ...]) -> Path:
    """Write a generated case as one 4-D file whose channels are the given sequences."""
    files = [phantoms / "phantom_000" / f"phantom_000_{NAMES[channel]}.nii.gz" for channel in order]
    images = [nib.load(file) for file in files]
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    nib.save(nib.Nifti1Image(volume, images[0].affine), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def segmented(phantoms: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one case."""
    folder = tmp_path_factory.mktemp("segmented")
    run(small_bundle, phantoms / "phantom_000", output=folder)
    return folder


def test_a_case_becomes_a_label_map_on_its_own_grid_and_a_row(segmented: Path, phantoms: Path) -> None:
    image = nib.load(phantoms / "phantom_000" / "phantom_000_t1.nii.gz")
    label = nib.load(segmented / "phantom_000_seg.nii.gz")
    assert label.shape == image.shape
    np.testing.assert_allclose(label.affine, image.affine)
    assert set(np.unique(label.dataobj)) <= {0, 1, 2, 3}
    ((name, row),) = read_table(segmented).items()
    assert (name, row["error"]) == ("phantom_000", "")
    labels, voxel = np.asarray(label.dataobj), float(np.prod(label.header.get_zooms())) / 1000
    assert float(row["ml_WT"]) == pytest.approx((labels > 0).sum() * voxel, abs=1e-4)
    assert float(row["ml_edema"]) == pytest.approx((labels == 2).sum() * voxel, abs=1e-4)


def test_a_case_that_is_done_lies_no_longer_in_memory_while_the_next_one_is_read(
    phantoms: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        copy_case(phantoms, tmp_path / "cases", number)
    volumes: list[weakref.ref] = []
    left: list[list[weakref.ref]] = []
    finish, read = segmentation.RecordHandler.finish, segmentation.RecordedCases.read

    def finish_case(self: Any, engine: Engine) -> None:
        volumes.extend(weakref.ref(value) for value in engine.state.output[0].values() if torch.is_tensor(value))
        finish(self, engine)

    def read_next(self: Any, case: dict[str, Any]) -> dict[str, Any]:
        left.append([volume for volume in volumes if volume() is not None])
        return read(self, case)

    monkeypatch.setattr(segmentation.RecordHandler, "finish", finish_case)
    monkeypatch.setattr(segmentation.RecordedCases, "read", read_next)
    run(small_bundle, tmp_path / "cases", output=tmp_path / "out")
    assert left == [[], []]
    assert len(volumes) >= 2 * 4  # image, label map, probabilities and uncertainty


def test_every_output_says_that_it_is_for_research_and_not_a_medical_device(segmented: Path) -> None:
    words = ("research use only", "not a medical device", "non-commercial")
    for path in ("index.html", "pictures/phantom_000.png", "segmentation.csv", "segmentation.json"):
        assert (segmented / path).is_file(), path
    texts = [path.read_text().lower() for path in segmented.rglob("*") if path.suffix in (".csv", ".json", ".html")]
    texts.append(nib.load(segmented / "phantom_000_seg.nii.gz").header["descrip"].item().decode().lower())
    assert len(texts) == 6
    for text in texts:
        assert [word in text for word in words] == [True] * 3, text


def test_four_files_a_folder_and_one_4d_file_give_the_same_label_map(
    segmented: Path, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    expected = voxels(segmented / "phantom_000_seg.nii.gz")
    files = {
        sequence: str(
            shutil.copy(phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz", tmp_path / f"p {name}.nii.gz")
        )
        for sequence, name in zip(("t1", "t1c", "t2", "flair"), NAMES, strict=True)
    }
    run(small_bundle, output=tmp_path / "four", **files)
    stacked = one_file(phantoms, tmp_path / "Müller 1.nii.gz", (3, 0, 1, 2))
    run(small_bundle, stacked, output=tmp_path / "Größe und so", order="flair,t1,t1c,t2")
    np.testing.assert_array_equal(voxels(tmp_path / "four" / "p_seg.nii.gz"), expected)
    np.testing.assert_array_equal(voxels(tmp_path / "Größe und so" / "Müller 1_seg.nii.gz"), expected)


def test_a_scheme_and_the_names_of_a_challenge_are_a_matter_of_two_words(
    segmented: Path, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    run(small_bundle, phantoms / "phantom_000", output=tmp_path, scheme="brats2017", naming="brats")
    label, expected = voxels(tmp_path / "phantom_000.nii.gz"), voxels(segmented / "phantom_000_seg.nii.gz")
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == ["phantom_000.nii.gz"]
    np.testing.assert_array_equal(label, np.where(expected == 3, 4, expected))
    same = [f"ml_{part}" for part in ("WT", "TC", "ET", "edema", "NCR_NET")]
    rows = read_table(tmp_path)["phantom_000"], read_table(segmented)["phantom_000"]
    assert [rows[0][name] for name in same] == [rows[1][name] for name in same]
    doubts = [voxels(out / "uncertainty" / "phantom_000_uncertainty.nii.gz") for out in (tmp_path, segmented)]
    np.testing.assert_array_equal(*doubts)


def test_probabilities_and_uncertainty_lie_on_the_grid_of_the_case(
    segmented: Path, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"cluster_volume": 0, "thresholds": [0.3, 0.4, 0.3]}
    rows = run(small_bundle, phantoms / "phantom_000", output=tmp_path, probabilities=True, tta=True, **settings)
    label = nib.load(tmp_path / "phantom_000_seg.nii.gz")
    probs = nib.load(tmp_path / "probabilities" / "phantom_000_probabilities.nii.gz")
    doubt = nib.load(tmp_path / "uncertainty" / "phantom_000_uncertainty.nii.gz")
    assert (probs.shape, doubt.shape) == ((*label.shape, 3), label.shape)
    for image in (probs, doubt):
        np.testing.assert_allclose(image.affine, label.affine)
        assert image.get_data_dtype() == np.float32
    whole = probs.get_fdata()[..., 0]
    np.testing.assert_array_equal(whole > 0.5, np.asarray(label.dataobj) > 0)
    expected = 1 - 2 * whole[whole > 0.5].sum() / (whole.sum() + (whole > 0.5).sum())
    assert float(rows["phantom_000"]["uncertainty_WT"]) == pytest.approx(expected, abs=1e-4)
    masks = regions_from_classes(torch.from_numpy(np.asarray(label.dataobj))[None])
    expected_doubt = chance_of_error(torch.from_numpy(probs.get_fdata()).movedim(-1, 0), masks)[0]
    np.testing.assert_allclose(doubt.get_fdata(), expected_doubt, atol=1e-6)
    assert doubt.get_fdata().max() > 0
    plain = nib.load(segmented / "uncertainty" / "phantom_000_uncertainty.nii.gz").get_fdata()
    assert np.abs(plain - doubt.get_fdata()).max() > 0.01  # one pass is another mean than that of eight
    assert not (segmented / "probabilities").exists()


def test_a_search_that_finds_tumor_in_every_window_gives_the_same_label_map(
    small_bundle: Path, phantoms: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"patch_size": [8, 8, 8], "search_threshold": 0.0, "thresholds": [0.5] * 3}
    labels = []
    for search in (2.0, 0):
        out = tmp_path / f"search{search:g}"
        run(small_bundle, phantoms / "phantom_000", output=out, search=search, **settings)
        labels.append(np.asarray(nib.load(out / "phantom_000_seg.nii.gz").dataobj))
    assert labels[0].any()
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [("fast", {"overlap": 0.0}), ("accurate", {"overlap": 0.5, "search": 0, "flips": [0, 1, 2]})],
    ids=["fast", "accurate"],
)
def test_a_preset_is_a_few_settings(
    preset: str, settings: dict[str, Any], small_bundle: Path, phantoms: Path, tmp_path: Path
) -> None:
    run(small_bundle, phantoms / "phantom_000", output=tmp_path, **{preset: True})
    kept = json.loads((tmp_path / "records" / "phantom_000.json").read_text())["settings"]
    assert {name: kept[name] for name in ("overlap", "search", "flips") if name in kept} == settings


def test_cases_whose_names_hold_dots_have_a_label_map_each(small_bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    for name, source in (("1.3.6.1", "phantom_000"), ("1.3.6.2", "phantom_001")):
        (tmp_path / "cases" / name).mkdir(parents=True)
        for sequence in NAMES:
            file = phantoms / source / f"{source}_{sequence}.nii.gz"
            (tmp_path / "cases" / name / f"{name}_{sequence}.nii.gz").write_bytes(file.read_bytes())
    rows = run(small_bundle, tmp_path / "cases", output=tmp_path / "out")
    assert list(rows) == ["1.3.6.1", "1.3.6.2"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{name}_seg.nii.gz" for name in rows]
    assert [rows[name]["error"] for name in rows] == ["", ""]


def test_what_segment_did_not_write_is_not_replaced(small_bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    case = phantoms / "phantom_000"
    truth = Path(shutil.copy(case / "phantom_000_seg.nii.gz", tmp_path))
    before = truth.read_bytes()
    with pytest.raises(ValueError, match=r"phantom_000_seg\.nii\.gz must not be replaced, as segment did not write it"):
        segment(str(case), output=str(tmp_path), bundle=str(small_bundle))
    assert truth.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [truth.name]
    truth.unlink()
    (tmp_path / "datalist.json").write_text(json.dumps({"training": []}))
    with pytest.raises(ValueError, match=r"datalist\.json must not be replaced, as segment did not write it"):
        segment(str(case), output=str(tmp_path), bundle=str(small_bundle))
    assert json.loads((tmp_path / "datalist.json").read_text()) == {"training": []}


@pytest.mark.parametrize("form", ["folder", "flat", "link", "4-D"])
def test_no_label_map_is_written_beside_images_where_it_would_be_the_truth_of_its_case(
    form: str, small_bundle: Path, phantoms: Path, tmp_path: Path
) -> None:
    folder, settings = tmp_path / "phantom_000", {}
    if form == "4-D":
        settings = {"order": "t1,t1c,t2,flair"}
        cases = one_file(phantoms, folder / "phantom_000.nii.gz", (0, 1, 2, 3))
    else:
        cases = copy_case(phantoms, tmp_path)
        (cases / "phantom_000_seg.nii.gz").unlink()
    if form == "flat":
        for file in (phantoms / "phantom_001").glob("*_t*.nii.gz"):
            shutil.copy(file, folder)
    (tmp_path / "link").symlink_to(folder)
    out = tmp_path / "link" if form == "link" else folder
    before = sorted(folder.iterdir())
    message = rf"{out} must hold no images of cases, got {folder}/phantom_000\S*\.nii\.gz of case phantom_000; "
    with pytest.raises(ValueError, match=message):
        segment(str(cases), output=str(out), bundle=str(small_bundle), **settings)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["index.html", "segmentation.csv", "records", "pictures", "phantom_000_seg.nii.gz"], ids=str
)
def test_a_folder_with_names_that_segment_writes_is_refused_unless_segment_wrote_it(
    segmented: Path, small_bundle: Path, phantoms: Path, tmp_path: Path, name: str
) -> None:
    source, out = segmented / name, tmp_path / "out"  # such as an evaluation's label map, which says the same of itself
    out.mkdir()
    shutil.copytree(source, out / name) if source.is_dir() else shutil.copy(source, out / name)
    with pytest.raises(ValueError, match=rf"{name} must not be replaced, as segment did not write it"):
        segment(str(phantoms / "phantom_000"), output=str(out), bundle=str(small_bundle))
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("name", ["datalist", "output_dir", "num_workers", "dataset_dir"])
def test_what_segment_sets_itself_is_refused(small_bundle: Path, phantoms: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="are segment's own: name CASES, --output and --workers instead"):
        segment(str(phantoms), output=str(tmp_path / "out"), bundle=str(small_bundle), **{name: "x"})
    assert not (tmp_path / "out").exists()


def test_all_48_orders_of_axes_and_zeros_around_give_the_same_label_map(phantoms: Path, tmp_path: Path) -> None:
    parser = inference_config(BUNDLE, {"cluster_volume": 0})
    prepare, finish = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")
    images = [nib.load(phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz") for name in NAMES]
    padded = [nib.Nifti1Image(np.pad(np.asarray(image.dataobj), ((3, 1), (0, 4), (2, 0))), None) for image in images]
    for image, source in zip(padded, images, strict=True):
        shift = nib.affines.from_matvec(np.eye(3), [-3, 0, -2])
        image.set_sform(source.affine @ shift, code=1)
    orders = [np.array([*zip(axes, signs, strict=True)]) for axes in permutations(range(3)) for signs in SIGNS]
    variants = [images, padded, *([image.as_reoriented(order) for image in images] for order in orders)]
    assert len({nib.aff2axcodes(turned.affine) for turned, *_ in variants}) == 48
    results = []
    for number, variant in enumerate(variants):
        files = [tmp_path / f"{number}_{name}.nii" for name in NAMES]
        for image, file in zip(variant, files, strict=True):
            nib.save(image, file)
        data = prepare({"case": "p", "image": [str(file) for file in files]})
        x, y, z = torch.meshgrid(*(torch.linspace(0, 1, size) for size in data["image"].shape[1:]), indexing="ij")
        probs = MetaTensor(torch.stack([x, (x + y) / 2, (x + y + z) / 3]))  # another along each axis
        pred = Compose(finish.transforms[:-1])(data | {"pred": probs})["pred"]
        assert pred.shape[1:] == variant[0].shape
        np.testing.assert_allclose(pred.affine, variant[0].affine)
        label = SpatialCrop(roi_slices=[slice(3, -1), slice(0, -4), slice(2, None)])(pred) if number == 1 else pred
        results.append((data["image"].numpy(), Orientation(axcodes="LPS", labels=None)(label).numpy()))
    assert len(np.unique(results[0][1])) == 4
    for image, label in results:
        np.testing.assert_array_equal(image, results[0][0])
        np.testing.assert_array_equal(label, results[0][1])


@pytest.mark.parametrize("workers", [0, 2], ids=["no workers", "two workers"])
def test_what_the_checks_find_is_a_warning_and_fails_a_case_only_on_request(
    workers: int, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    case = copy_case(phantoms, tmp_path)  # of 51 ml at most, and now with T2 and FLAIR exchanged
    for source, target in (("t2", "other"), ("flair", "t2"), ("other", "flair")):
        (case / f"phantom_000_{source}.nii.gz").rename(case / f"phantom_000_{target}.nii.gz")
    rows = run(small_bundle, case, output=tmp_path / "out", workers=workers)
    expected = (
        r"brain: \d+ ml are not 0, .*; order: given as t1, t1c, t2, flair the images look like .*, flair, t2, whose"
    )
    assert re.match(expected, rows["phantom_000"]["warnings"])
    assert rows["phantom_000"]["error"] == ""
    with pytest.raises(ValueError, match="1 of 1 cases failed"):
        run(small_bundle, case, output=tmp_path / "out", workers=workers, strict=True)
    assert re.match(expected, read_table(tmp_path / "out")["phantom_000"]["error"])
    assert not (tmp_path / "out" / "phantom_000_seg.nii.gz").exists()


def test_the_order_that_a_warning_names_needs_but_to_be_given(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    file = one_file(phantoms, tmp_path / "stacked.nii.gz", (3, 0, 1, 2))
    found = run(small_bundle, file, output=tmp_path / "out", order="t2,t1,flair,t1c")["stacked"]["warnings"]
    (likely,) = re.findall("order: given as t2, t1, flair, t1c the images look like (.*), whose", found)
    found = run(small_bundle, file, output=tmp_path / "out", order=likely)["stacked"]["warnings"]
    assert "order:" not in found


@pytest.mark.parametrize("workers", [0, 2], ids=["no workers", "two workers"])
def test_a_batch_goes_on_when_cases_fail_and_says_which_and_why(
    workers: int, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    cases = tmp_path / "cases"
    for number in range(3):
        copy_case(phantoms, cases, number)
    (cases / "phantom_000" / "phantom_000_t2.nii.gz").unlink()
    (cases / "phantom_001" / "phantom_001_flair.nii.gz").write_bytes(b"torn")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"2 of 3 cases failed, see .*index\.html"):
        run(small_bundle, cases, output=out, workers=workers)
    errors = {case: row["error"] for case, row in read_table(out).items()}
    assert errors["phantom_000"] == WITHOUT_T2
    assert "phantom_001_flair.nii.gz: file must be readable" in errors["phantom_001"]
    assert errors["phantom_002"] == ""
    assert [path.name for path in out.glob("*.nii.gz")] == ["phantom_002_seg.nii.gz"]


def test_a_case_that_fails_in_the_network_or_behind_it_fails_alone(
    phantoms: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnet_monai.transforms import LabelMapWriter

    write = LabelMapWriter.write

    def full_disk(self: LabelMapWriter, filename: str, *args: Any, **kwargs: Any) -> None:
        if "phantom_001" in str(filename):
            raise OSError("no space left on device")
        write(self, filename, *args, **kwargs)

    monkeypatch.setattr(LabelMapWriter, "write", full_disk)
    with pytest.raises(ValueError, match="1 of 4 cases failed"):
        run(small_bundle, phantoms, output=tmp_path)
    assert not list(tmp_path.rglob("phantom_001*[gz]"))  # neither a label map nor a picture
    errors = {case: row["error"] for case, row in read_table(tmp_path).items()}
    assert errors == {"phantom_001": "OSError: no space left on device"} | {f"phantom_00{n}": "" for n in (0, 2, 3)}


def test_a_run_is_taken_up_where_it_ended_and_its_table_is_of_all_cases(
    phantoms: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_bundle, phantoms / "phantom_000", output=tmp_path)
    run(small_bundle, phantoms / "phantom_001", output=tmp_path)
    (tmp_path / "phantom_001_seg.nii.gz").unlink()
    first = (tmp_path / "phantom_000_seg.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    two = [phantoms / "phantom_000", phantoms / "phantom_001"]
    assert sorted(run(small_bundle, *two, output=tmp_path, resume=True)) == ["phantom_000", "phantom_001"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "cases:      2, 1 finished before"
    assert [line.split(":")[0] for line in lines if line[0] == "["] == ["[1/1] phantom_001"]
    assert (tmp_path / "phantom_000_seg.nii.gz").stat().st_mtime_ns == first
    differ = (
        r"phantom_000 of a run with other settings: flips \(--tta, --accurate\) by default, now \[0, 1, 2\];"
        r" label_scheme \(--scheme\) brats2023, now msd; strict False, now True; without --resume"
    )
    with pytest.raises(ValueError, match=differ):
        run(small_bundle, *two, output=tmp_path, resume=True, scheme="msd", tta=True, strict=True)
    assert (tmp_path / "phantom_000_seg.nii.gz").stat().st_mtime_ns == first
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_what_a_preset_sets_is_named_with_the_preset_where_settings_differ() -> None:
    for preset, settings in PRESETS.items():
        assert [name for name in settings if f"--{preset}" not in OPTIONS[name].split(", ")] == []


def test_another_order_or_a_changed_file_is_segmented_anew(
    phantoms: Path, small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_file(phantoms, tmp_path / "stacked.nii.gz", (3, 0, 1, 2))

    def segmented_cases(order: str) -> int:
        capsys.readouterr()
        run(small_bundle, file, output=tmp_path / "out", order=order, resume=True)
        return sum(line.startswith("[") for line in capsys.readouterr().out.splitlines())

    assert segmented_cases("t1,t1c,t2,flair") == 1
    assert segmented_cases("t1,t1c,t2,flair") == 0
    assert segmented_cases("flair,t1,t1c,t2") == 1
    os.utime(file, (0, 0))
    assert segmented_cases("flair,t1,t1c,t2") == 1


def test_an_interrupt_leaves_no_half_written_file_and_a_table_of_what_is_done(
    phantoms: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnet_monai import transforms

    def interrupted(path: Path) -> Any:
        if "phantom_001" in str(path):
            raise KeyboardInterrupt
        return whole_file(path)

    monkeypatch.setattr(transforms, "whole_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small_bundle, phantoms / "phantom_000", phantoms / "phantom_001", output=tmp_path)
    written = ["phantom_000_seg.nii.gz", "phantom_000_uncertainty.nii.gz"]
    assert sorted(path.name for path in tmp_path.rglob("*.nii.gz")) == written
    assert not [path for path in tmp_path.rglob(".*")]
    assert read_table(tmp_path)["phantom_001"]["error"] == "not segmented: the run ended before, --resume goes on"


def test_inputs_are_left_as_they_are_though_they_cannot_be_written(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    case = copy_case(phantoms, tmp_path / "read only")
    before = {path.name: path.stat().st_mtime_ns for path in case.iterdir()}
    for path in (*case.iterdir(), case, case.parent):
        path.chmod(0o555)
    run(small_bundle, case.parent, output=tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in case.iterdir()} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "brats2016"}, "scheme must be one of brats2015, .*got 'brats2016'"),
        ({"naming": "nnunet"}, "naming must be one of bundle, brats, got 'nnunet'"),
        ({"fast": True, "accurate": True}, "exclude each other"),
        ({"device": "cuda:99"}, "device must be cpu, cuda or cuda:1, and here, got 'cuda:99'"),
        ({"order": "t1,t2"}, "order must be a permutation of t1,t1c,t2,flair, got t1,t2"),
        ({"shceme": "msd"}, r"options must be those of segment or ids of inference\.json, segment\.json, got shceme"),
        ({"cluster_volume": True}, "--cluster_volume must be followed by a value, such as 5000, got True"),
        ({"patch_size": True}, r"--patch_size must be followed by a value, such as \[32, 32, 16\], got True"),
        ({"save_uncertainty": "False "}, "--save_uncertainty must be True or False, got 'False '"),
        ({"bundle": "nowhere"}, r"the bundle must hold configs/segment\.json, got nowhere; name it with --bundle"),
    ],
    ids=["scheme", "naming", "presets", "device", "order", "slip", "no number", "no numbers", "switch", "bundle"],
)
def test_an_argument_that_cannot_be_is_refused_before_anything_is_written(
    settings: dict[str, Any], message: str, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        segment(str(phantoms), output=str(tmp_path / "out"), **{"bundle": str(small_bundle), **settings})
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_the_fault_of_no_case(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="belong to another network"):
        segment(
            str(phantoms),
            output=str(tmp_path / "out"),
            bundle=str(small_bundle),
            **{"network_def#features": [4, 4, 4, 4]},
        )
    assert not (tmp_path / "out").exists()


def test_a_cascade_segments_with_a_file_for_each_network(phantoms: Path, small_bundle: Path, tmp_path: Path) -> None:
    cascade = {"network_def#_target_": "omnet_monai.networks.ModelCascade"}
    files = [str(tmp_path / f"{number}.pt") for number in range(3)]
    networks = inference_config(small_bundle, cascade).get_parsed_content("network").networks
    for network, file in zip(networks, files, strict=True):
        torch.save(network.state_dict(), file)
    run(small_bundle, phantoms / "phantom_000", output=tmp_path / "out", checkpoint_path=files, **cascade)
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").is_file()
    files[2] = files[1]  # of a network of other classes
    with pytest.raises(ValueError, match=r"weights .*1\.pt belong to another network"):
        run(small_bundle, phantoms / "phantom_000", output=tmp_path / "out", checkpoint_path=files, **cascade)


def test_weights_that_are_not_there_leave_what_is_finished(
    segmented: Path, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(segmented, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"weights must be a file, got typo\.pt"):
            run(small_bundle, phantoms / "phantom_000", output=out, checkpoint_path="typo.pt", resume=resume)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_the_command_line_takes_paths_as_they_are_and_ends_with_status_1_if_a_case_failed(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    copy_case(phantoms, tmp_path / "2023")
    (tmp_path / "2023" / "phantom_000" / "phantom_000_t2.nii.gz").write_bytes(b"")
    (tmp_path / "2023" / "scan").mkdir()
    (tmp_path / "2023" / "scan" / "all.nii.gz").touch()
    copy_case(phantoms, tmp_path / "a,b", 1)
    words = ["omnet_monai", "segment", "2023", "a,b", "--output", "out put"]
    done = run_python([*words, "--bundle", str(small_bundle)], tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: 1 of 2 cases failed, see {tmp_path / 'out put' / 'index.html'}\n"
    count, aside, first, second, warning = done.stdout.splitlines()[1:6]
    assert count == "cases:      2"
    assert aside == f"left aside: {tmp_path / '2023' / 'scan'}: all.nii.gz: named by no layout"
    assert re.match(r"\[1/2, about \d+ s left\] phantom_000: failed: /", first)
    assert re.match(r"\[2/2\] phantom_001: WT [\d.]+ ml, TC [\d.]+ ml, ET [\d.]+ ml in \d+ s$", second)
    assert warning.startswith("    warning: brain: ")
    assert (tmp_path / "out put" / "phantom_001_seg.nii.gz").is_file()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--fast", "A", "B"], "fast", "A"),
        (["A", "--tta", "false"], "tta", "false"),
        (["A", "--resume=1"], "resume", 1),
        (["--save_uncertainty", "A", "B"], "save_uncertainty", "A"),
    ],
    ids=["a case", "false", "1", "a switch of a config"],
)
def test_a_switch_takes_no_case_and_no_other_text(
    words: list[str],
    name: str,
    value: str | int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["omnet_monai", "segment", *words, "--output", "out"])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    rule = "with a capital letter, and cases come before switches"
    assert capsys.readouterr().err == f"error: --{name} must be True or False, got {value!r}: {rule}\n"
    assert not (tmp_path / "out").exists()


def test_only_cases_and_texts_are_paths_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def verb(
        *cases: str, output: str, t1: str | None = None, workers: int = 0, tta: bool = False, **overrides: Any
    ) -> None:
        given.update(cases=cases, output=output, t1=t1, workers=workers, tta=tta, overrides=overrides)

    (tmp_path / "4").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "segment", verb)
    words = ["4", "a,b", "--output", "4", "--workers", "4", "--overlap", "4", "--tta"]
    monkeypatch.setattr(sys, "argv", ["omnet_monai", "verb", *words])
    command_line.main()
    assert given == {
        "cases": ("4", "a,b"), "output": "4", "t1": None, "workers": 4, "tta": True, "overrides": {"overlap": 4},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["segment", "A", "--output", ""], "--output must be followed by a text, got ''"),
        (["segment", "A", "--output"], "--output must be followed by a text, got 'True'"),
        (["segment", "A", "--output", "out", "--workers", "two"], "--workers must be a whole number, got 'two'"),
        (["segment", "A", "--output", "out", "--workers"], "--workers must be a whole number, got True"),
        (["segment", "A", "--output", "out", "--order"], "--order must be followed by a value, got True"),
        (["score", "A", "B", "--fold"], "--fold must be followed by a value, got True"),  # which equals 1
        (["ablate", "A", "B", "--seeds", "a"], "--seeds must be whole numbers, as in 0,1,2, got 'a'"),
        (["ablate", "A", "B", "--folds", "0,b"], "--folds must be whole numbers, as in 0,1,2, got (0, 'b')"),
    ],
    ids=[
        "empty",
        "no text",
        "text for a number",
        "no number",
        "no names",
        "no fold",
        "text for some",
        "text among them",
    ],
)
def test_an_option_takes_nothing_but_its_value(
    words: list[str], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["omnet_monai", *words])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    assert capsys.readouterr().err == f"error: {rule}\n"
    assert not list(tmp_path.iterdir())


def test_a_misspelled_option_is_refused_before_a_verb_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(predictions: str, datalist: str, scheme: str | None = None) -> None:
        raise AssertionError("was called")

    monkeypatch.setattr(command_line, "score", score)
    monkeypatch.setattr(sys, "argv", ["omnet_monai", "score", "a", "b", "--shceme", "msd"])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()


def test_a_case_without_a_sequence_is_segmented_on_request_alone_and_every_output_says_so(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    case = copy_case(phantoms, tmp_path)
    (case / "phantom_000_t2.nii.gz").unlink()
    rows = run(small_bundle, case, output=tmp_path / "out", allow_missing=True)
    assert "missing: t2, taken for the mean of the brain; " in rows["phantom_000"]["warnings"]
    assert "missing: t2, taken" in (tmp_path / "out" / "index.html").read_text()
    for file in ("phantom_000_seg.nii.gz", "uncertainty/phantom_000_uncertainty.nii.gz"):
        header = nib.load(tmp_path / "out" / file).header
        assert header["descrip"].item().startswith(b"without t2; research use only")
    three = {name: str(case / f"phantom_000_{file}.nii.gz") for name, file in zip(("t1", "t1c"), NAMES, strict=False)}
    (found,) = find_images([], three, allow_missing=True)
    assert found["image"] == [three["t1"], three["t1c"], None, None]
    shutil.copytree(case, tmp_path / "twice" / "phantom_000")  # what is there twice is not missing
    shutil.copy(case / "phantom_000_t1.nii.gz", tmp_path / "twice" / "phantom_000" / "phantom_000_t1.nii")
    assert "t1 twice" in find_images([str(tmp_path / "twice")], allow_missing=True)[0]["problems"]


def test_two_processes_share_the_cases_and_leave_one_table(
    segmented: Path, phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    for number in range(3):
        copy_case(phantoms, tmp_path / "cases", number)
    (tmp_path / "cases" / "phantom_001" / "phantom_001_t1.nii.gz").write_bytes(b"torn")
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "omnet_monai", "segment"]
    done = run_python([*words, "cases", "--output", "out", "--bundle", str(small_bundle)], tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: 1 of 3 cases failed") == 1
    rows = read_table(tmp_path / "out")
    assert {case: bool(row["error"]) for case, row in rows.items()} == {
        "phantom_000": False,
        "phantom_001": True,
        "phantom_002": False,
    }
    label = voxels(tmp_path / "out" / "phantom_000_seg.nii.gz")
    np.testing.assert_array_equal(label, voxels(segmented / "phantom_000_seg.nii.gz"))


def test_what_two_processes_cannot_start_with_is_said_once_and_without_a_traceback_of_the_second(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    copy_case(phantoms, tmp_path / "cases")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").touch()
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "omnet_monai", "segment"]
    done = run_python([*words, "cases", "--output", "out", "--bundle", str(small_bundle)], tmp_path)
    assert done.stderr.count("index.html must not be replaced") == 1
    assert "[rank1]" not in done.stderr


def test_images_are_found_in_every_form_and_label_maps_left_aside(phantoms: Path, tmp_path: Path) -> None:
    case = copy_case(phantoms, tmp_path)
    shutil.copy(case / "phantom_000_seg.nii.gz", tmp_path / "other_seg.nii.gz")
    files = [str(case / f"phantom_000_{name}.nii.gz") for name in NAMES]
    assert find_images([str(case)]) == find_images([str(tmp_path)]) == [{"case": "phantom_000", "image": files}]
    (case / "phantom_000_t2.nii.gz").unlink()
    (found,) = find_images([str(tmp_path)])
    assert (found["image"][2], found["problems"]) == (None, WITHOUT_T2)


def test_a_4d_file_needs_an_order_unless_its_layout_tells_it(phantoms: Path, tmp_path: Path) -> None:
    loose = one_file(phantoms, tmp_path / "p1.nii.gz", (0, 1, 2, 3))
    msd = one_file(phantoms, tmp_path / "imagesTr" / "p2.nii.gz", (3, 0, 1, 2))
    assert "state it for a 4-D file, as in --order" in find_images([str(loose)])[0]["problems"]
    assert find_images([str(msd)]) == [{"case": "p2", "image": str(msd), "order": ["flair", "t1", "t1c", "t2"]}]
    assert find_images([str(loose)], order="t1,t1c,flair,t2")[0]["order"] == ["t1", "t1c", "flair", "t2"]


def test_the_order_of_a_folder_of_4d_files_is_the_one_that_is_stated(phantoms: Path, tmp_path: Path) -> None:
    one_file(phantoms, tmp_path / "imagesTr" / "p2.nii.gz", (0, 1, 2, 3))
    assert find_images([str(tmp_path)])[0]["order"] == ["flair", "t1", "t1c", "t2"]
    assert find_images([str(tmp_path)], order="t1,t1c,t2,flair")[0]["order"] == ["t1", "t1c", "t2", "flair"]
    (tmp_path / "imagesTr").rename(tmp_path / "others")
    with pytest.raises(ValueError, match="name files of other names one by one: 4-D with --order"):
        find_images([str(tmp_path)], order="t1,t1c,t2,flair")


def test_a_file_of_an_incomplete_case_stands_for_what_its_folder_stands_for(phantoms: Path, tmp_path: Path) -> None:
    case = copy_case(phantoms, tmp_path)
    (case / "phantom_000_t2.nii.gz").unlink()
    for allow_missing in (False, True):
        of_folder = find_images([str(case)], allow_missing=allow_missing)
        assert find_images([str(case / "phantom_000_t1.nii.gz")], allow_missing=allow_missing) == of_folder
        assert of_folder[0].get("problems") == (None if allow_missing else WITHOUT_T2)


def test_a_case_named_by_each_of_its_files_is_one_and_labels_beside_it_do_not_count(
    phantoms: Path, tmp_path: Path
) -> None:
    case = copy_case(phantoms, tmp_path)
    shutil.copy(case / "phantom_000_seg.nii.gz", case / "phantom_000_seg.nii")
    files = [str(case / f"phantom_000_{name}.nii.gz") for name in NAMES]
    assert find_images(files) == find_images([str(case)]) == [{"case": "phantom_000", "image": files}]


def test_a_folder_in_use_by_another_run_is_left_to_it(segmented: Path, phantoms: Path, small_bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in segmented.rglob("*")}
    with sole_run(segmented), pytest.raises(ValueError, match="is being written by another run: choose another"):
        run(small_bundle, phantoms / "phantom_000", output=segmented)
    assert {path: path.stat().st_mtime_ns for path in segmented.rglob("*") if path.name != LOCK} == before


def test_a_disk_without_locks_is_warned_of_and_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(lock: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("omnet_monai.outputs.FileLock.acquire", acquire)
    with pytest.warns(UserWarning, match="cannot be locked, .*No locks available"), sole_run(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


def test_another_naming_leaves_one_label_map_of_a_case(phantoms: Path, small_bundle: Path, tmp_path: Path) -> None:
    for naming, name in (("bundle", "phantom_000_seg.nii.gz"), ("brats", "phantom_000.nii.gz")):
        run(small_bundle, phantoms / "phantom_000", output=tmp_path, naming=naming)
        assert [path.name for path in tmp_path.glob("*.nii.gz")] == [name]


def test_a_case_named_as_the_label_map_of_another_stays_finished(
    phantoms: Path, small_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for case in ("x", "x_seg"):
        (tmp_path / case).mkdir()
        for name in NAMES:
            shutil.copy(
                phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz", tmp_path / case / f"{case}_{name}.nii.gz"
            )
    cases = (tmp_path / "x", tmp_path / "x_seg")
    run(small_bundle, *cases, output=out, naming="brats")
    (out / "records" / "x.json").unlink()
    run(small_bundle, *cases, output=out, naming="brats", resume=True)
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["x.nii.gz", "x_seg.nii.gz"]


class ClosedPipe(io.StringIO):
    """A reader that has gone, as behind ``| head -1``."""

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stdout", [ClosedPipe(), io.TextIOWrapper(io.BytesIO(), "ascii")], ids=["pipe", "ascii"])
def test_a_line_that_cannot_be_printed_fails_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: io.TextIOBase
) -> None:
    case = {"case": "Jos\u00e9", "image": ["t1.nii.gz"]}
    (tmp_path / "datalist.json").write_text(json.dumps({"test": [case]}))
    records = segmentation.Records(tmp_path / "datalist.json")
    monkeypatch.setattr(sys, "stdout", stdout)
    records.write(case, error="no image")
    assert segmentation.read_record(records.path(case["case"])).error == "no image"


def test_a_reader_that_has_gone_stops_no_run(
    phantoms: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert run(small_bundle, phantoms / "phantom_000", output=tmp_path)["phantom_000"]["error"] == ""


def test_the_command_line_writes_out_letters_that_its_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def datalist(directory: str) -> None:
        print(directory)

    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(command_line, "datalist", datalist)
    monkeypatch.setattr(sys, "argv", ["omnet_monai", "datalist", "Jos\u00e9"])
    command_line.main()
    terminal.flush()
    assert terminal.buffer.getvalue() == b"Jos\\xe9\n"


@pytest.mark.parametrize("message", ["", "\n$1_$2 is no formula"], ids=["no text", "an empty line first"])
def test_an_error_that_begins_with_an_empty_line_fails_its_case(
    message: str, phantoms: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(label: MetaTensor) -> dict[str, float]:
        raise ValueError(message)

    monkeypatch.setattr(segmentation, "measure", measure)
    with pytest.raises(ValueError, match="1 of 1 cases failed"):
        segment(str(phantoms / "phantom_000"), output=str(tmp_path), bundle=str(small_bundle))
    error = read_table(tmp_path)["phantom_000"]["error"]
    assert error == message.strip() if message else error.endswith("Error")


def test_a_dollar_in_a_name_is_no_formula(phantoms: Path, small_bundle: Path, tmp_path: Path) -> None:
    case = tmp_path / "P$1_$2"
    case.mkdir()
    for name in NAMES:
        shutil.copy(phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz", case / f"{case.name}_{name}.nii.gz")
    rows = run(small_bundle, case, output=tmp_path / "out")
    assert rows[case.name]["error"] == ""


def test_a_name_that_is_not_utf8_is_a_problem_of_its_case_alone(phantoms: Path, tmp_path: Path) -> None:
    copy_case(phantoms, tmp_path)
    odd = os.fsdecode(b"M\xfcller")
    copy_case(phantoms, tmp_path / odd, 1)
    fine, other = find_images([str(tmp_path)])
    assert "problems" not in fine
    assert other["problems"] == "the names of files and folders must be in UTF-8"
    assert json.dumps(other, ensure_ascii=False).encode().count(rb"M\\xfcller") == 4


@pytest.mark.parametrize(
    ("paths", "single", "message"),
    [
        ([], {}, "segment needs cases: .* got none"),
        (["nowhere"], {}, "a case must be a folder or a file, got .*nowhere, which does not exist"),
        ([], {"t1": "a", "t2": "b"}, "and --flair, lacks --t1c, --flair; --allow_missing segments such"),
    ],
    ids=["none", "missing", "two of four files"],
)
def test_what_names_no_case_is_refused(paths: list[str], single: dict[str, str], message: str, phantoms: Path) -> None:
    with pytest.raises(ValueError, match=message):
        find_images([str(phantoms / path) for path in paths], single)


def test_the_record_is_json_with_files_and_settings(segmented: Path) -> None:
    record = json.loads((segmented / "records" / "phantom_000.json").read_text())
    assert record["settings"]["label_scheme"] == "brats2023"
    assert re.fullmatch(r"[0-9a-f]{64}", record["settings"]["weights_sha256"])
    assert len(record["image"]) == 4
