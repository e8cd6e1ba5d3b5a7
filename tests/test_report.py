"""Tables, the log of evaluations and the pictures that an evaluation leaves behind."""

from __future__ import annotations

import csv
import logging
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.data import MetaTensor

from omnet_monai import report
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS
from omnet_monai.report import CaseTable, EvaluationLog, format_table, save_overlay, write_csv

SCORES = {"b": [0.5, 0.25, 0.0], "a": [1.0, 0.75, 0.5], "c": [0.9, 0.8, 0.1]}
SHAPE = (12, 14, 10)
COLORS = {"WT": (0xFF, 0xD2, 0x1F), "TC": (0xFF, 0x4B, 0x4B), "ET": (0x35, 0xD0, 0xFF)}


def test_a_table_has_names_on_the_left_and_numbers_with_three_digits_on_the_right() -> None:
    text = format_table(["case", "dice", "count"], [["a", 0.12345, 7], ["longer", 1.0, 12345678]])
    assert text.splitlines() == [
        "case     dice     count",
        "a       0.123         7",
        "longer  1.000  12345678",
    ]
    assert format_table(["case", "dice"], []) == "case  dice"


def test_a_csv_is_written_with_its_folder_and_four_digits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    for _ in range(2):
        write_csv(path, ["case", "dice"], [["a, b", 0.123456], ["c", 1], ["d", float("nan")]])
    assert path.read_bytes() == b'case,dice\n"a, b",0.1235\nc,1\nd,nan\n'
    assert list(path.parent.iterdir()) == [path]


class Unprintable:
    def __str__(self) -> str:
        raise OSError("no space left on device")


def test_a_csv_that_fails_midway_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["case"], [["a"]])
    with pytest.raises(OSError, match="no space left"):
        write_csv(path, ["case"], [["b"], [Unprintable()]])
    assert path.read_text() == "case\na\n"


def evaluate(
    cases: Sequence[str], *handlers: Any, details: str = "dice_mean", batch_size: int = 1, weights: Path | None = None
) -> Engine:
    """Run an evaluator whose metric finds the scores above, and whose loader noted a file of weights."""
    batches = [
        [{"image": MetaTensor(torch.zeros(4, 2, 2, 2), meta={"case": case})} for case in cases[start:][:batch_size]]
        for start in range(0, len(cases), batch_size)
    ]
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.weights = weights

    def score(engine: Engine) -> None:
        engine.state.metric_details = {details: torch.tensor([SCORES[case] for case in cases])}

    evaluator.add_event_handler(Events.EPOCH_COMPLETED, score)
    for handler in handlers:
        handler.attach(evaluator)
    evaluator.run(batches)
    return evaluator


def test_the_mean_of_each_region_becomes_a_metric() -> None:
    metrics = evaluate(["b", "a"], CaseTable()).state.metrics
    assert metrics == {"dice_WT": 0.75, "dice_TC": 0.5, "dice_ET": 0.25}
    metrics = evaluate(["b", "a"], CaseTable("hd95_mean", "hd95"), details="hd95_mean").state.metrics
    assert metrics == {"hd95_WT": 0.75, "hd95_TC": 0.5, "hd95_ET": 0.25}


@pytest.mark.parametrize("batch_size", [1, 2], ids=["one by one", "in twos"])
@pytest.mark.parametrize("order", ["abc", "cab", "bca"], ids=str)
def test_every_case_is_tabled_in_an_order_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: str, batch_size: int
) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    evaluate(list(order), CaseTable(path=tmp_path / "table.csv"), batch_size=batch_size)
    assert (tmp_path / "table.csv").read_text() == (
        "case,dice_WT,dice_TC,dice_ET\n"
        "a,1.0000,0.7500,0.5000\n"
        "b,0.5000,0.2500,0.0000\n"
        "c,0.9000,0.8000,0.1000\n"
        "mean,0.8000,0.6000,0.2000\n"
    )
    assert caplog.messages == [
        "\n"
        "case  dice_WT  dice_TC  dice_ET\n"
        "a       1.000    0.750    0.500\n"
        "b       0.500    0.250    0.000\n"
        "c       0.900    0.800    0.100\n"
        "mean    0.800    0.600    0.200"
    ]


def test_a_second_evaluation_begins_its_own_table(tmp_path: Path) -> None:
    table = CaseTable(path=tmp_path / "table.csv")
    evaluate(["a", "b", "c"], table)
    evaluate(["c"], table)
    assert (tmp_path / "table.csv").read_text().splitlines()[1:] == [
        "c,0.9000,0.8000,0.1000",
        "mean,0.9000,0.8000,0.1000",
    ]


def test_a_table_without_a_path_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(["a"], CaseTable())
    assert not list(tmp_path.iterdir())


def test_each_evaluation_adds_a_line_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.sys, "argv", ["anything", "run", "--dataset_dir", "my cases"])
    monkeypatch.setattr(report, "_commit", lambda: "abc1234")
    weights, table = tmp_path / "model.pt", tmp_path / "table.csv"
    log = EvaluationLog(tmp_path / "log" / "evaluations.csv", table)
    for content, cases in ((b"", ["b", "a"]), (b"abc", ["c"])):
        weights.write_bytes(content)
        evaluate(cases, CaseTable(path=table), log, weights=weights)
    evaluate(["c"], CaseTable(path=table), log)
    with open(tmp_path / "log" / "evaluations.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["date", "commit", "command", "weights_sha256", "scores"]
    assert len(lines) == 3
    for line in lines:
        days = datetime.now(UTC) - datetime.strptime(line[0], "%Y-%m-%d").replace(tzinfo=UTC)
        assert 0 <= days.days <= 1
        assert line[1:3] == ["abc1234", "python -m monai.bundle run --dataset_dir 'my cases'"]
    # The known SHA-256 of nothing and of "abc".
    assert [line[3] for line in lines] == [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "not from a file",
    ]
    assert [line[4] for line in lines] == [
        "a 1.000/0.750/0.500; b 0.500/0.250/0.000; mean 0.750/0.500/0.250",
        "c 0.900/0.800/0.100; mean 0.900/0.800/0.100",
        "c 0.900/0.800/0.100; mean 0.900/0.800/0.100",
    ]


@pytest.mark.parametrize(
    ("status", "expected"), [("", "abc1234"), (" M src/file.py\n", "abc1234+changes")], ids=["clean", "changed"]
)
def test_the_commit_bears_a_mark_if_files_were_changed(
    monkeypatch: pytest.MonkeyPatch, status: str, expected: str
) -> None:
    def git(command: list[str], **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(stdout="abc1234\n" if "rev-parse" in command else status)

    monkeypatch.setattr(report.subprocess, "run", git)
    assert report._commit() == expected


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")], ids=["no git", "no checkout"]
)
def test_the_commit_is_unknown_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def git(command: list[str], **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(report.subprocess, "run", git)
    assert report._commit() == "unknown"


def make_image() -> torch.Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5


def make_label(cls: int) -> torch.Tensor:
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[:, 3:9, 4:10, 2:7] = cls
    return label


def colored(picture: np.ndarray, region: str) -> int:
    """Count the pixels of a region's color."""
    difference = np.abs(picture[..., :3] - np.array(COLORS[region]) / 255).max(-1)
    return int((difference < 0.1).sum())


def draw(path: Path, label: torch.Tensor, truth: torch.Tensor | None = None) -> np.ndarray:
    save_overlay(make_image(), label, path / "new" / "p1.png", truth, title="p1")
    picture = imread(path / "new" / "p1.png")
    assert picture.shape == (704, 990, 4)
    return picture


@pytest.mark.parametrize(
    ("cls", "above", "below"),
    [
        (0, set(), set()),
        (EDEMA, {"WT"}, set()),
        (NECROSIS, {"WT"}, {"TC"}),
        (ENHANCING, {"WT"}, {"ET"}),  # the line of ET covers that of TC
    ],
    ids=["empty", "edema", "core", "enhancing"],
)
def test_a_picture_shows_the_outline_of_wt_above_and_those_of_tc_and_et_below(
    tmp_path: Path, cls: int, above: set[str], below: set[str]
) -> None:
    picture = draw(tmp_path, make_label(cls))
    for half, expected in ((picture[:352], above), (picture[352:], below)):
        assert {region for region in COLORS if colored(half, region) > 50} == expected


def test_the_truth_is_drawn_dashed_and_either_may_be_empty(tmp_path: Path) -> None:
    label, empty = make_label(EDEMA), make_label(0)
    alone, both, truth = (draw(tmp_path, *labels) for labels in ((label,), (label, empty), (empty, label)))
    np.testing.assert_array_equal(alone, both)
    assert 0 < colored(truth, "WT") < colored(alone, "WT")


def test_a_label_may_come_without_a_channel_and_as_an_array(tmp_path: Path) -> None:
    label = make_label(ENHANCING)
    first = draw(tmp_path, label)
    save_overlay(make_image().numpy(), label[0].numpy(), tmp_path / "p2.png", title="p1")
    np.testing.assert_array_equal(imread(tmp_path / "p2.png"), first)


def test_a_label_full_of_tumor_and_an_image_of_zeros_are_drawn(tmp_path: Path) -> None:
    full = torch.full((1, *SHAPE), ENHANCING, dtype=torch.uint8)
    save_overlay(torch.zeros(4, *SHAPE), full, tmp_path / "p1.png")
    assert imread(tmp_path / "p1.png").shape == (704, 990, 4)


def test_planes_have_anterior_or_superior_up_and_the_patients_right_on_the_left() -> None:
    volume = np.zeros((3, 3, 3))  # axes that grow to the left, to posterior, to superior
    volume[0, 1, 1], volume[1, 0, 1], volume[1, 1, 2] = 1, 2, 3  # right, anterior, superior of the center
    center = np.array([1, 1, 1])
    axial, coronal, sagittal = (report._slice(volume, normal, center) for normal in (2, 1, 0))
    assert axial.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert coronal.tolist() == [[0, 3, 0], [1, 0, 0], [0, 0, 0]]
    assert sagittal.tolist() == [[0, 3, 0], [2, 0, 0], [0, 0, 0]]
