"""Tables and the log of evaluations that an evaluation leaves behind."""

from __future__ import annotations

import csv
import logging
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from omnet_monai import report
from omnet_monai.report import CaseTable, EvaluationLog, format_table, write_csv

SCORES = {"b": [0.5, 0.25, 0.0], "a": [1.0, 0.75, 0.5], "c": [0.9, 0.8, 0.1]}


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
    evaluator.state.weights = [weights] if weights else []

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
    caplog: pytest.LogCaptureFixture, order: str, batch_size: int
) -> None:
    caplog.set_level(logging.INFO, "omnet_monai")
    evaluate(list(order), CaseTable(), batch_size=batch_size)
    assert caplog.messages == [
        "\n"
        "case  dice_WT  dice_TC  dice_ET\n"
        "a       1.000    0.750    0.500\n"
        "b       0.500    0.250    0.000\n"
        "c       0.900    0.800    0.100\n"
        "mean    0.800    0.600    0.200"
    ]


def test_a_second_evaluation_begins_its_own_table(caplog: pytest.LogCaptureFixture) -> None:
    table = CaseTable()
    evaluate(["a", "b", "c"], table)
    caplog.set_level(logging.INFO, "omnet_monai")
    evaluate(["c"], table)
    (message,) = caplog.messages
    assert [line.split()[0] for line in message.splitlines()[1:]] == ["case", "c", "mean"]


def test_each_evaluation_adds_a_line_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.sys, "argv", ["anything", "run", "--dataset_dir", "my cases"])
    monkeypatch.setattr(report, "_commit", lambda: "abc1234")
    weights, table = tmp_path / "model.pt", tmp_path / "table.csv"
    log = EvaluationLog(tmp_path / "log" / "evaluations.csv", table)
    for content, cases in ((b"", ["b", "a"]), (b"abc", ["c"])):
        weights.write_bytes(content)
        rows = [[case, *SCORES[case], ""] for case in cases] + ([["d", "", "", "", "torn"]] if content else [])
        write_csv(table, ["case", "dice_WT", "dice_TC", "dice_ET", "error"], rows)
        evaluate(cases, log, weights=weights)
    evaluate(["c"], log)
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
        "b 0.500/0.250/0.000; a 1.000/0.750/0.500; mean 0.750/0.500/0.250",
        "d error; c 0.900/0.800/0.100; mean 0.900/0.800/0.100",
        "d error; c 0.900/0.800/0.100; mean 0.900/0.800/0.100",
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


def test_the_commit_of_a_checkout_that_the_package_only_lies_in_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    installed = tmp_path / ".venv" / "report.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(report, "__file__", str(installed))
    assert report._commit() == "unknown"
    subprocess.run([*git, "add", str(installed)], check=True)
    assert report._commit().endswith("+changes")


@pytest.mark.parametrize(
    ("program", "module"),
    [("omnet_monai/monai/bundle/__main__.py", "monai.bundle"), ("a/omnet_monai/__main__.py", "omnet_monai")],
    ids=["a run below a folder of that name", "a verb"],
)
def test_the_command_names_the_module_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, module: str
) -> None:
    monkeypatch.setattr(report.sys, "argv", [program, "run"])
    write_csv(tmp_path / "table.csv", ["case", "dice_WT", "dice_TC", "dice_ET", "error"], [["a", 1, 1, 1, ""]])
    evaluate(["a"], EvaluationLog(tmp_path / "log.csv", tmp_path / "table.csv"))
    assert f"python -m {module} run" in (tmp_path / "log.csv").read_text()
