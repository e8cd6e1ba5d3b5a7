from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from omnet_monai import __main__ as command_line
from omnet_monai.datalist import datalist, read_cases, read_images, read_scored_cases, write_datalist
from omnet_monai.regions import SEQUENCES

ENDINGS = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def make_case(root: Path, case: str, endings: tuple[str, ...] = ENDINGS) -> None:
    (root / case).mkdir(parents=True)
    for ending in endings:
        (root / case / f"{case}{ending}.nii.gz").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven labeled scans of five patients, and one without a label."""
    for case in ("A-001-000", "A-001-001", "A-001-002", "A-002-000", "A-003-000", "A-004-000", "A-005-000"):
        make_case(tmp_path / "data", case)
    make_case(tmp_path / "data", "A-006-000", ENDINGS[:4])
    return tmp_path / "data"


def write_split(root: Path, training: list[str], test: list[str]) -> Path:
    path = root.parent / "split.json"
    path.write_text(json.dumps({"training": training, "test": test}))
    return path


def folds_of(path: Path) -> dict[str, int]:
    return {case["case"]: case["fold"] for case in read_cases(path)}


def test_what_is_written_is_read_back_with_absolute_paths(root: Path) -> None:
    path = write_datalist(root)
    assert path == root / "datalist.json"
    cases = read_cases(path)
    assert [case["case"] for case in cases][:2] == ["A-001-000", "A-001-001"]
    folder = root / "A-001-001"
    assert cases[1] == {
        "case": "A-001-001",
        "patient": "A-001",
        "image": [str(folder / f"A-001-001{ending}.nii.gz") for ending in ENDINGS[:4]],
        "label": str(folder / "A-001-001-seg.nii.gz"),
        "scheme": "brats2023",
        "fold": cases[0]["fold"],
    }


def test_the_file_is_a_decathlon_datalist_with_relative_paths(root: Path) -> None:
    content = json.loads(write_datalist(root).read_text())
    assert content["modality"] == {str(channel): name for channel, name in enumerate(SEQUENCES)}
    assert content["labels"]["3"] == "enhancing"
    assert content["labels"]["4"] == "background"  # the resection cavity of this layout's scheme
    assert (content["name"], content["numTraining"], content["numTest"]) == ("data", 7, 1)
    assert content["training"][0]["label"] == "A-001-000/A-001-000-seg.nii.gz"


def test_a_moved_folder_keeps_its_datalist(root: Path) -> None:
    write_datalist(root)
    moved = root.rename(root.parent / "moved")
    files = [file for case in read_cases(moved / "datalist.json") for file in (*case["image"], case["label"])]
    assert all(Path(file).is_file() for file in files)


def test_a_datalist_outside_the_folder_finds_the_files(root: Path, tmp_path: Path) -> None:
    path = write_datalist(root, tmp_path / "new" / "list.json")
    assert all(Path(case["label"]).is_file() for case in read_cases(path))


def test_a_file_behind_a_link_keeps_its_name(root: Path) -> None:
    seg = root / "A-002-000" / "A-002-000-seg.nii.gz"
    seg.unlink()
    (root / "blob").touch()
    seg.symlink_to(root / "blob")
    assert str(seg) in [case["label"] for case in read_cases(write_datalist(root))]


def test_a_case_named_like_a_folder_beside_the_datalist_keeps_its_name(root: Path) -> None:
    # monai.data.load_decathlon_datalist would make a path of it.
    assert (root / "A-001-000").is_dir()
    assert read_cases(write_datalist(root))[0]["case"] == "A-001-000"


def test_cases_without_a_label_are_for_testing(root: Path) -> None:
    path = write_datalist(root)
    assert [case["case"] for case in read_cases(path, "test")] == ["A-006-000"]
    assert "fold" not in read_cases(path, "test")[0]


def test_an_incomplete_case_is_left_out(root: Path) -> None:
    (root / "A-005-000" / "A-005-000-t2w.nii.gz").unlink()
    assert "A-005-000" not in folds_of(write_datalist(root, folds=4))


@pytest.mark.parametrize("folds", [1, 2, 3, 5], ids=str)
def test_all_scans_of_a_patient_are_in_one_fold_and_folds_differ_by_one_patient(root: Path, folds: int) -> None:
    for seed in range(5):
        cases = read_cases(write_datalist(root, folds=folds, seed=seed))
        pairs = {(case["patient"], case["fold"]) for case in cases}
        assert len(pairs) == 5
        sizes = Counter(fold for _, fold in pairs)
        assert set(sizes) == set(range(folds))
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_the_seed_decides_the_folds(root: Path) -> None:
    first = folds_of(write_datalist(root, seed=3))
    assert folds_of(write_datalist(root, seed=3)) == first
    assert any(folds_of(write_datalist(root, seed=seed)) != first for seed in range(4))


def test_a_fold_and_its_complement_make_the_whole(root: Path) -> None:
    path = write_datalist(root, folds=3)
    for fold in range(3):
        rest, held_out = read_cases(path, fold=fold), read_cases(path, fold=fold, held_out=True)
        assert {case["fold"] for case in held_out} == {fold}
        assert fold not in {case["fold"] for case in rest}
        assert len(rest) + len(held_out) == 7


def test_without_a_fold_nothing_is_held_out(root: Path) -> None:
    path = write_datalist(root)
    assert len(read_cases(path)) == 7
    assert read_cases(path, held_out=True) == []


def test_a_given_split_is_kept(root: Path) -> None:
    split = write_split(root, ["A-005-000", "A-003-000"], ["A-001-001"])
    path = write_datalist(root, folds=2, split=split)
    assert [case["case"] for case in read_cases(path)] == ["A-005-000", "A-003-000"]
    assert [case["case"] for case in read_cases(path, "test")] == ["A-001-001"]


@pytest.mark.parametrize(
    ("training", "test", "match"),
    [
        (["A-002-000", "X"], ["Y"], "split .*split.json must name complete cases with a label, got X, Y"),
        (["A-002-000"], ["A-006-000"], "must name complete cases with a label, got A-006-000"),
        (["A-001-000"], ["A-001-002"], r"must not share patients between training and test, got \['A-001'\]"),
    ],
    ids=["unknown names", "no label", "patient on both sides"],
)
def test_a_split_must_fit_the_cases(root: Path, training: list[str], test: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_datalist(root, split=write_split(root, training, test), folds=1)
    assert not (root / "datalist.json").exists()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"train": ["A-001-000"], "testing": ["A-002-000"]}, r'{"train": \["A-001-000"\], "testing": '),
        ({"training": [], "test": []}, r'{"training": \[\], "test": \[\]}$'),
        ({"training": "A-001-000"}, '{"training": "A-001-000"}$'),
        ({"training": None, "test": ["A-002-000"]}, '{"training": null, "test": '),
        ({"training": [{"image": "x"}]}, r'{"training": \[{"image": "x"}\]}$'),
        ({"training": ["A-001-000", "A-002-000"], "test": ["A-001-000"]}, "A-001-000 twice$"),
    ],
    ids=["other names", "empty lists", "a text", "null", "an entry", "twice"],
)
def test_a_split_file_must_list_names_of_cases(root: Path, content: dict[str, Any], got: str) -> None:
    (root / "split.json").write_text(json.dumps(content))
    rule = "split.json must list names of cases, each once, under training or test, got "
    with pytest.raises(ValueError, match=rule + got):
        write_datalist(root, split=root / "split.json", folds=1)
    assert not (root / "datalist.json").exists()


def test_a_split_file_must_exist(root: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be a JSON file, got .*absent.json, which does not exist"):
        write_datalist(root, split=root / "absent.json")


@pytest.mark.parametrize(
    ("folder", "folds", "message"),
    [
        (".", 0, "5, got 0: state --folds 1;"),
        (".", 6, "5, got 6: state --folds 5;"),
        ("A-001-000", 5, "1, got 5: state --folds 1;"),
    ],
    ids=["none", "more than patients", "one patient"],
)
def test_folds_must_not_outnumber_the_patients(root: Path, folder: str, folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"folds must be between 1 and the number of training patients, {message}"):
        write_datalist(root / folder, folds=folds)


def test_a_folder_of_incomplete_cases_is_an_error_that_tells_what_is_missing(tmp_path: Path) -> None:
    make_case(tmp_path, "A-001-000", ENDINGS[1:])
    with pytest.raises(ValueError, match=r"must hold a complete case, got case A-001-000 in .*: missing t1$"):
        write_datalist(tmp_path)


def test_a_failed_write_leaves_the_old_datalist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_datalist(root).read_text()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_datalist(root, seed=1)
    assert (root / "datalist.json").read_text() == old


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"section": "validation"}, "section must be one of training, test in .*, got 'validation'"),
        ({"fold": 7}, "fold must be one of 0, 1, 2, 3, 4 in training of .*, got 7"),
        ({"section": "test", "fold": 0}, "fold must be one of none in test of .*, got 0"),
    ],
    ids=["section", "fold", "section without folds"],
)
def test_reading_refuses_an_unknown(root: Path, arguments: dict[str, Any], match: str) -> None:
    path = write_datalist(root)
    with pytest.raises(ValueError, match=match):
        read_cases(path, **arguments)


def test_reading_refuses_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datalist must be a JSON file, got .*none.json, which does not exist"):
        read_cases(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"must be a JSON file, got .*own.json: Expecting value"),
        ('{"training": [', r"must be a JSON file, got .*own.json: Expecting value"),
        ("[]", r"must be a JSON file of an object, got .*own.json with a list"),
    ],
    ids=["empty", "torn", "a list"],
)
def test_a_file_that_is_no_object_is_refused_by_its_name(root: Path, text: str, match: str) -> None:
    (root / "own.json").write_text(text)
    with pytest.raises(ValueError, match=f"datalist {match}"):
        read_cases(root / "own.json")
    with pytest.raises(ValueError, match=f"split {match}"):
        write_datalist(root, split=root / "own.json")


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({"label": "p_seg.nii"}, "image must be a path or a list of paths, got None"),
        (5, "image must be a path or a list of paths, got 5"),
        ({"image": {"t1": "p_t1.nii"}}, r"image must be a path or a list of paths, got {'t1'"),
        ({"image": ["p_t1.nii", 2, None, None]}, r"image must be a path or a list of paths, got \['p_t1.nii', 2, None"),
        ({"image": "p.nii", "label": ["p_seg.nii"]}, r"label must be a path, got \['p_seg.nii'\]"),
        ({"image": "p.nii", "case": 7}, "case must be text, got 7"),
        ({"image": "p.nii", "fold": "0"}, "fold must be a whole number, got '0'"),
    ],
    ids=["no image", "number", "object", "number in the list", "list of labels", "case", "fold"],
)
def test_an_entry_that_is_no_case_is_refused_by_its_number(tmp_path: Path, entry: Any, rule: str) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"test": ["a.nii", entry]}))
    for read in (read_cases, read_scored_cases):
        with pytest.raises(ValueError, match=f"own.json, entry 2 of test: {rule}"):
            read(tmp_path / "own.json", "test")


def test_an_entry_without_a_sequence_or_with_nulls_is_a_case(tmp_path: Path) -> None:
    entry = {"image": ["a.nii", None, "b.nii", "c.nii"], "label": None, "case": None, "fold": None}
    (tmp_path / "own.json").write_text(json.dumps({"test": [entry]}))
    assert read_cases(tmp_path / "own.json", "test")[0]["image"][:2] == [str(tmp_path / "a.nii"), None]


def test_a_datalist_and_a_split_may_begin_with_the_mark_of_windows(root: Path) -> None:
    split = write_split(root, ["A-001-000"], ["A-002-000"])
    for file in (split, write_datalist(root, folds=1, split=split)):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_cases(write_datalist(root, root / "again.json", folds=1, split=split)) == read_cases(
        root / "datalist.json"
    )


def test_cases_of_one_name_are_neither_written_nor_read(tmp_path: Path) -> None:
    for ending in ("t1", "t1c", "t2", "flair"):
        for name in (f"p_{ending}", ending):
            (tmp_path / "cases" / "p").mkdir(parents=True, exist_ok=True)
            (tmp_path / "cases" / "p" / f"{name}.nii.gz").touch()
    with pytest.raises(ValueError, match=r"of .*cases must have names of their own, got p twice: .*p_t1.* and .*/t1\."):
        write_datalist(tmp_path / "cases")
    images = [[f"sub-{n}/anat_{part}.nii.gz" for part in ("T1w", "T1c", "T2w", "FL")] for n in (1, 2)]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"test": [{"image": image, "label": "l.nii"} for image in images]}))
    for read in (read_cases, read_scored_cases):
        with pytest.raises(
            ValueError, match=r"of .*dataset\.json must have names of their own, got anat twice: .*sub-1"
        ):
            read(path, "test")


def test_a_plain_decathlon_datalist_is_read(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], "test": ["./imagesTs/a.nii.gz"]}))
    assert read_cases(tmp_path / "dataset.json", "test") == [{"image": str(tmp_path / "imagesTs" / "a.nii.gz")}]


def test_the_verb_walks_once_prints_counts_and_tells_of_incomplete_cases(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "A-005-000" / "A-005-000-t2w.nii.gz").unlink()
    walks = []
    monkeypatch.setattr(os, "walk", lambda *args, walk=os.walk, **kw: walks.append(args) or walk(*args, **kw))
    datalist(str(root), folds=2)
    assert len(walks) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "brats2023: 7 cases of 5 patients"
    assert sum(int(line.split()[2]) for line in out.splitlines() if line.startswith("fold ")) == 6
    assert out.splitlines()[-1] == f"6 training, 1 test: {root / 'datalist.json'}"
    assert err == f"left out: case A-005-000 in {root / 'A-005-000'}: missing t2\n"


@pytest.mark.real_data
def test_the_fixed_split_of_real_cases_gives_nine_and_four(data_root: Path, tmp_path: Path) -> None:
    path = write_datalist(data_root / "cases", tmp_path / "datalist.json", split=data_root / "split.json")
    assert (len(read_cases(path)), len(read_cases(path, "test"))) == (9, 4)
    assert {case["scheme"] for case in read_cases(path)} == {"brats2017"}


def test_images_to_segment_come_without_labels_and_incomplete_cases_are_warned_of(tmp_path: Path) -> None:
    for case, sequences in {"a": ("t1", "t1ce", "t2", "flair", "seg"), "b": ("t1", "t2")}.items():
        (tmp_path / case).mkdir()
        for sequence in sequences:
            (tmp_path / case / f"{case}_{sequence}.nii.gz").touch()
    with pytest.warns(UserWarning, match="left out: .*b.*"):
        (case,) = read_images(tmp_path)
    assert case["case"] == "a"
    assert "label" not in case
    shutil.rmtree(tmp_path / "a")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"one complete case; .*b: missing"),
    ):
        read_images(tmp_path)


def test_a_folder_called_like_a_number_is_a_folder(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(phantoms / "phantom_000", tmp_path / "2021" / "phantom_000")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["omnet_monai", "datalist", "2021", "--folds", "1"])
    command_line.main()
    assert (tmp_path / "2021" / "datalist.json").is_file()
