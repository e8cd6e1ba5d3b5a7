"""The scores of an evaluation's cases together: worst first, summarized, compared, as text, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnet_monai.files import whole_file
from omnet_monai.metrics import IN_UNITS, METRICS
from omnet_monai.regions import REGIONS
from omnet_monai.report import format_table, write_csv
from omnet_monai.summary import Differences, paired_differences, summarize

__all__ = ["COLUMNS", "CaseScore", "Results", "digits", "milliliters", "read_dice", "read_scores"]

COLUMNS = [f"{metric}_{region}" for metric in METRICS for region in REGIONS]
VOLUMES = [f"{source}_ml_{region}" for source in ("truth", "pred") for region in REGIONS]


@dataclass(frozen=True)
class CaseScore:
    """
    One case of an evaluation.

    Attributes:
        case: its name.
        patient: its patient; resampling keeps the cases of one together.
        values: ``dice_WT``, ... and volumes in ml ``truth_ml_WT``, ..., ``pred_ml_WT``, ...; empty after an error.
        error: why it could not be scored, empty if it was.
    """

    case: str
    patient: str
    values: dict[str, float] = field(default_factory=dict)
    error: str = ""


class Results:
    """
    All cases of an evaluation.

    Args:
        cases: the cases, those that failed too.
        compare_to: ``scores.csv`` of another evaluation to compare the common cases with, ``None`` for none.

    Attributes:
        scored: the cases that have scores, those with the lowest mean Dice first.
        failed: the others.
        summary: means of ``COLUMNS`` with ranges or intervals, ``None`` if nothing was scored.
        differences: paired differences to the other evaluation, this one minus that; ``None`` without one, or if no
            case was scored in both.
        compared: names of the cases in ``differences``.

    Raises:
        ValueError: if the other evaluation lacks a metric.
    """

    def __init__(self, cases: Sequence[CaseScore], compare_to: str | Path | None = None) -> None:
        named = sorted(cases, key=lambda case: case.case)
        self.failed = [case for case in named if case.error]
        self.scored = sorted((case for case in named if not case.error), key=_mean_dice)
        self.summary = summarize(self._table(self.scored), [c.patient for c in self.scored]) if self.scored else None
        self.differences: Differences | None = None
        self.compared: list[str] = []
        self.other = str(compare_to or "")
        if compare_to is not None:
            self._compare(read_scores(compare_to))

    @property
    def means(self) -> dict[str, float]:
        """Mean of every column over the scored cases."""
        return {} if self.summary is None else dict(zip(COLUMNS, self.summary.mean.tolist(), strict=True))

    @property
    def ends(self) -> tuple[str, str]:
        """What the lower and the upper figure beside a mean are."""
        interval = self.summary is not None and self.summary.interval
        return ("95 % interval, from", "to") if interval else ("lowest case", "highest case")

    def text(self) -> str:
        """Table the means, below ten patients every case too; each cell holds the regions in order."""
        header = [f"{'/'.join(REGIONS)} of {len(self.scored)}", *METRICS.values()]
        rows: list[list[str]] = []
        if self.summary is not None:
            if not self.summary.interval:
                by_name = sorted(self.scored, key=lambda case: case.case)
                rows += [_row(case.case, [case.values[column] for column in COLUMNS]) for case in by_name]
            rows += [_row("mean", self.summary.mean)]
            rows += [_row(self.ends[0], self.summary.low), _row(self.ends[1], self.summary.high)]
        if self.differences is not None:
            rows += [_row(f"difference of {len(self.compared)}", self.differences.mean)]
            rows += [_row("standard error", self.differences.error)]
        notes = [f"not scored: {case.error}" for case in self.failed]
        if self.other and not self.compared:
            notes.append(f"not compared: no case was scored both here and in {self.other}")
        return "\n".join([format_table(header, rows), *notes])

    def write(self, folder: Path) -> None:
        """Write ``scores.csv``, a row per case, and ``scores.json``, which has the summary too."""
        columns = [*COLUMNS, *VOLUMES]
        cases = sorted([*self.scored, *self.failed], key=lambda case: case.case)
        rows = [[c.case, c.patient, *(c.values.get(column, "") for column in columns), c.error] for c in cases]
        write_csv(folder / "scores.csv", ["case", "patient", *columns, "error"], rows)
        content: dict[str, Any] = {"cases": [asdict(case) for case in cases]}
        if self.summary is not None:
            ends = ("low", "high") if self.summary.interval else ("lowest", "highest")
            figures = zip(COLUMNS, self.summary.mean, self.summary.low, self.summary.high, strict=True)
            content["summary"] = {c: {"mean": mean, ends[0]: low, ends[1]: high} for c, mean, low, high in figures}
        if self.differences is not None:
            each = {
                name: dict(zip(COLUMNS, row, strict=True))
                for name, row in zip(self.compared, self.differences.cases, strict=True)
            }
            errors = [None if np.isnan(error) else error for error in self.differences.error]
            means = {
                column: {"mean": mean, "standard_error": error}
                for column, mean, error in zip(COLUMNS, self.differences.mean, errors, strict=True)
            }
            content["differences"] = {"to": self.other, "summary": means, "cases": each}
        with whole_file(folder / "scores.json") as part:
            part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def _compare(self, others: dict[str, dict[str, float]]) -> None:
        own = {case.case: case for case in self.scored}
        self.compared = sorted(own.keys() & others.keys())
        if not self.compared:
            return
        second = np.array([[others[name][column] for column in COLUMNS] for name in self.compared])
        first = [own[name] for name in self.compared]
        # As the others' file has them, or the same label maps would differ by what was rounded off.
        written = np.array([[float(f"{score:.4f}") for score in row] for row in self._table(first)])
        self.differences = paired_differences(written, second, [case.patient for case in first])

    @staticmethod
    def _table(cases: Sequence[CaseScore]) -> np.ndarray:
        return np.array([[case.values[column] for column in COLUMNS] for case in cases])


def read_dice(path: str | Path) -> dict[str, list[float]]:
    """Read Dice of WT, TC and ET of the scored cases of a ``scores.csv``, as :func:`read_scores` does."""
    return {case: [values[f"dice_{region}"] for region in REGIONS] for case, values in read_scores(path).items()}


def read_scores(path: str | Path) -> dict[str, dict[str, float]]:
    """
    Read the scored cases of a ``scores.csv``: name to values of ``COLUMNS``.

    Raises:
        ValueError: if it is no such file, or a score is no number.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ValueError(f"scores to read must be a CSV file of an evaluation, got {path}, which {what}")
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin it with a mark
        reader = csv.DictReader(file)
        missing = [column for column in ["case", *COLUMNS, "error"] if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} must have a column for every metric, lacks {', '.join(missing)}")
        scored = [row for row in reader if not row["error"]]
    return {row["case"]: {column: _number(path, row, column) for column in COLUMNS} for row in scored}


def digits(column: str, value: float) -> str:
    """Write a score, or a difference of scores, as it is read: mm with one digit, a share with three, ml as volumes."""
    if np.isnan(value):  # the error of a single patient's difference
        return "-"
    if column.startswith("false_ml"):
        return ("-" if value < 0 else "") + milliliters(abs(value))
    return f"{value:z.1f}" if column.startswith(IN_UNITS) else f"{value:z.3f}"


def milliliters(value: float) -> str:
    """Write a volume as it is read: with one digit, below 1 ml with three or the first, so that only an empty is 0."""
    if value >= 1 or value == 0:
        return f"{value:.1f}"
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.1g}"


def _number(path: str | Path, row: dict[str, str], column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError) as error:  # a short row has None in its last cells
        raise ValueError(f"case {row['case']}: {path}: {column} must be a number, got {row[column]!r}") from error


def _mean_dice(case: CaseScore) -> float:
    return sum(case.values[f"dice_{region}"] for region in REGIONS) / len(REGIONS)


def _row(name: str, values: Sequence[float] | np.ndarray) -> list[str]:
    texts = iter([digits(column, value) for column, value in zip(COLUMNS, values, strict=True)])
    return [name, *("/".join(next(texts) for _ in REGIONS) for _ in METRICS)]
