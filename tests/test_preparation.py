"""All cases of a training, prepared before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from omnet_monai.datalist import write_datalist
from omnet_monai.demo import bundle_root
from omnet_monai.preparation import prepare
from omnet_monai.sampling import first_cause


@pytest.fixture
def cases(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of three training cases and one for the test, without files of its own beside them."""
    folder = tmp_path / "cases"
    shutil.copytree(phantoms, folder)
    write_datalist(folder, folds=3, split=folder / "split.json")
    return folder


def test_a_training_finds_every_case_in_the_cache(cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(str(cases / "datalist.json"), cache_dir=str(tmp_path / "cache"))
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    assert capsys.readouterr().out == f"3 of 3 cases prepared in {tmp_path / 'cache'}\n"
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "train.json")
    parser.update({"dataset_dir": str(cases), "cache_dir": str(tmp_path / "cache"), "fold": 0})
    dataset: Any = parser.get_parsed_content("train#dataset")
    for position in range(len(dataset)):
        dataset[position]
    assert len(dataset) == 2
    assert sorted((tmp_path / "cache").iterdir()) == files


def test_in_the_folder_of_a_copied_bundle_its_own_cache_is_filled(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundle_root() / "configs", tmp_path / "bundle" / "configs")
    monkeypatch.chdir(tmp_path / "bundle")
    prepare(str(cases / "datalist.json"))
    assert len(list((tmp_path / "bundle" / "runs" / "cache").iterdir())) == 3


def test_the_folder_of_another_bundle_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.json").write_text("{}")
    root = bundle_root()
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == root


@pytest.mark.parametrize("workers", [0, 1], ids=lambda n: f"{n} workers")
def test_every_case_that_cannot_be_read_is_named_and_the_others_are_prepared(
    workers: int, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second, _ = json.loads((cases / "split.json").read_text())["training"]
    broken = [cases / first / f"{first}_t1.nii.gz", cases / second / f"{second}_seg.nii.gz"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"2 of 3 cases of .*datalist\.json cannot be trained on, see above"):
        prepare(str(cases / "datalist.json"), workers, cache_dir=str(tmp_path / "cache"))
    *errors, summary = capsys.readouterr().out.splitlines()
    assert [f"case {case}: " in error for case, error in zip((first, second), errors, strict=True)] == [True, True]
    assert [str(file) in error for file, error in zip(broken, errors, strict=True)] == [True, True]
    assert summary == f"1 of 3 cases prepared in {tmp_path / 'cache'}"
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("fold", [None, 0, 1], ids=["all cases", "held out", "trained on"])
def test_a_training_case_without_a_label_is_named_before_the_first_epoch(cases: Path, fold: int | None) -> None:
    """For a held-out one that is hours before validation would end in an error that tells no case."""
    content = json.loads((cases / "datalist.json").read_text())
    unlabeled = next(case for case in content["training"] if case["fold"] == 0)
    del unlabeled["label"]
    (cases / "datalist.json").write_text(json.dumps(content))
    parser = ConfigParser()
    parser.read_config(bundle_root() / "configs" / "train.json")
    parser.update({"dataset_dir": str(cases), "fold": fold})
    name = "train" if fold != 0 else "validate"
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content(f"{name}#dataset")
    said = f"cases to train on and to score must have a label, {unlabeled['case']} have none"
    assert str(first_cause(error.value)) == said


@pytest.mark.parametrize("fold", [None, 0], ids=["all cases", "the only fold held out"])
def test_a_data_list_without_cases_to_train_on_is_refused(cases: Path, fold: int | None, tmp_path: Path) -> None:
    content = json.loads((cases / "datalist.json").read_text())
    content["training"] = [] if fold is None else [content["training"][0] | {"fold": 0}]
    (cases / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as error:
        prepare(str(cases / "datalist.json"), fold=fold, cache_dir=str(tmp_path / "cache"))
    said = "a data list must have cases to train on, got none, or none outside the fold"
    assert str(first_cause(error.value)) == said


def test_an_option_that_a_training_does_not_have_is_refused(cases: Path) -> None:
    with pytest.raises(ValueError, match=r"overrides must be ids of .*train\.json, got cachedir"):
        prepare(str(cases / "datalist.json"), cachedir="elsewhere")
