"""The first run and the command line around it."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from processes import run_python

from omnet_monai import __main__ as command_line
from omnet_monai import demo as demo_module
from omnet_monai.demo import bundle_root, demo


def test_the_first_run_leaves_scores_label_maps_a_report_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = demo_module.write_phantoms
    monkeypatch.setattr(
        demo_module, "write_phantoms", lambda folder, cases, seed, size, kind: whole(folder, cases, seed, (40, 40, 32))
    )
    tiny = {"steps_per_epoch": 1, "cases_per_step": 1, "train#trainer#max_epochs": 3, "patch_size": [24, 16, 16]}
    demo(str(tmp_path), training=2, test=1, **tiny)
    printed = capsys.readouterr().out
    header, case, mean = [x for x in printed.splitlines() if x.startswith(("Dice", "phantom", "mean"))][-3:]
    assert header.split()[:3] == ["Dice", "WT", "untrained"]
    assert case.split()[0] == "phantom_000"
    assert mean.split()[1:] == case.split()[1:]  # of one case
    for file in ("segmented/phantom_000_seg.nii.gz", "segmented/report.html", "models/model.pt"):
        assert (tmp_path / file).is_file(), file


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--training", "0"], "training and test must have a case at least, got 0 and 4"),
        (["--test", "0"], "training and test must have a case at least, got 60 and 0"),
        (["--max_epochs", "1"], r"overrides must be ids of .*evaluate\.json, got max_epochs"),
    ],
    ids=["nothing to train on", "nothing to score", "an id that no config has"],
)
def test_a_first_run_that_cannot_end_well_is_refused_before_a_case_is_generated(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["omnet_monai", "demo", str(tmp_path / "new"), *words])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    assert re.fullmatch(f"error: {error}\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["32", "abc", "(32,32,24.5)", "None"])
def test_a_size_that_is_not_made_of_whole_numbers_is_refused(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["omnet_monai", "phantom", str(tmp_path), "--size", size])
    with pytest.raises(SystemExit, match="1"):
        command_line.main()
    assert capsys.readouterr().err.startswith("error: --size must be whole numbers, as in 96,96,64, got ")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_configs_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold configs/segment\.json, got .*; name it with --bundle"):
        bundle_root(str(tmp_path))


def test_the_users_mistake_is_one_line_on_stderr_and_exit_status_1(tmp_path: Path) -> None:
    done = run_python(["omnet_monai", "datalist", str(tmp_path)], tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_the_phantom_verb_writes_cases_and_their_datalist(tmp_path: Path) -> None:
    done = run_python(["omnet_monai", "phantom", ".", "--cases", "2", "--size", "32,32,24"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "datalist.json").is_file()
    assert (tmp_path / "phantom_001" / "phantom_001_flair.nii.gz").is_file()


def test_the_help_of_every_verb_describes_each_of_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs: dict[str, Any] = {}
    monkeypatch.setattr(command_line.fire, "Fire", lambda known, command, name: verbs.update(known))
    command_line.main()
    assert "datalist" in verbs
    for name, verb in verbs.items():
        described = re.findall(r"^ {8}(\w+): ", verb.__doc__, flags=re.MULTILINE)
        arguments = list(signature(verb).parameters)
        assert described[: len(arguments)] == arguments, name  # errors follow


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "segment"),
        (["demo", "--help"], "Run the whole of OM-Net"),
        (["segment", "CASE", "--output", "OUT", "-h"], "Segment cases"),
    ],
    ids=["alone", "of a verb that needs nothing", "after arguments"],
)
def test_help_is_shown_wherever_it_is_asked_for(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["omnet_monai", *words])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert not ended.value.code
    assert told in "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())
