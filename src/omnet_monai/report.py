"""What an evaluation leaves behind: a table of every case and a log line of every look at test cases."""

from __future__ import annotations

import csv
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from omnet_monai.files import sha256, whole_file
from omnet_monai.regions import REGIONS

__all__ = ["CaseTable", "EvaluationLog", "format_table", "write_csv"]

logger = logging.getLogger(__name__)


class CaseTable:
    """
    Collect a region metric of every case, publish its mean per region (``dice_WT``, ...) among the engine's metrics,
    and print the table.

    Args:
        details: name of the engine's metric whose details are tabled, shape ``(cases, 3)``.
        metric: prefix of the published names.
    """

    def __init__(self, details: str = "dice_mean", metric: str = "dice") -> None:
        self.details = details
        self.metric = metric
        self.cases: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator, before handlers that read its metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def begin(self, engine: Engine) -> None:
        """Forget the cases of an earlier evaluation."""
        self.cases = []

    def collect(self, engine: Engine) -> None:
        """Keep the names of the batch's cases."""
        batch: list[dict[str, Any]] = engine.state.batch  # type: ignore[assignment]  # decollated
        self.cases += [str(item["image"].meta["case"]) for item in batch]

    def finish(self, engine: Engine) -> None:
        """Table the cases."""
        details: dict[str, torch.Tensor] = engine.state.metric_details  # type: ignore[attr-defined]  # of MONAI
        scores = details[self.details].cpu().numpy()
        cases = string_list_all_gather(self.cases)
        for region, mean in zip(REGIONS, scores.mean(0), strict=True):
            engine.state.metrics[f"{self.metric}_{region}"] = float(mean)
        if idist.get_rank() == 0:
            rows = [[case, *values] for case, values in zip(cases, scores.tolist(), strict=True)]
            rows = [*sorted(rows), ["mean", *scores.mean(0).tolist()]]
            header = ["case", *(f"{self.metric}_{region}" for region in REGIONS)]
            logger.info("\n" + format_table(header, rows))


class EvaluationLog:
    """
    Append one line to a log of evaluations: date, commit, command, SHA-256 of the weights' files, Dice of every case.
    Weights that no checkpoint loader read, such as those of a federated round, have no sum.

    Args:
        path: CSV file to append to; it is begun with a header.
        table: path of the evaluation's ``scores.csv``.
    """

    HEADER = ("date", "commit", "command", "weights_sha256", "scores")

    def __init__(self, path: str | Path, table: str | Path) -> None:
        self.path = Path(path)
        self.table = Path(table)

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Append the line; from the first process only."""
        if idist.get_rank() != 0:
            return
        scores = _dice_of_cases(self.table)
        weights: list[Path] = getattr(engine.state, "weights", [])
        digests = "; ".join(map(sha256, weights)) or "not from a file"
        module = "omnet_monai" if Path(sys.argv[0]).parent.name == "omnet_monai" else "monai.bundle"
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        line = [datetime.now(UTC).strftime("%Y-%m-%d"), _commit(), command, digests, scores]
        lines = _read_rows(self.path) if self.path.exists() else []
        write_csv(self.path, self.HEADER, [*lines, line])


def format_table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Lay out rows in columns, numbers with three digits."""
    cells = [list(header)] + [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Write a CSV file whole or not at all; its folder is made."""
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows])


def _dice_of_cases(table: Path) -> str:
    """Write Dice of WT, TC, ET of every case and their mean in one line."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dice = {row["case"]: [float(row[f"dice_{region}"]) for region in REGIONS] for row in rows if not row["error"]}
    if dice:
        dice["mean"] = [sum(column) / len(dice) for column in zip(*dice.values(), strict=True)]
    failed = [f"{row['case']} error" for row in rows if row["error"]]
    return "; ".join([*failed, *(f"{case} {'/'.join(f'{value:.3f}' for value in dice[case])}" for case in dice)])


def _read_rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _commit() -> str:
    """Return the short hash of the checkout's commit, with a mark if it was changed; "unknown" outside a checkout."""
    try:
        _git("ls-files", "--error-unmatch", __file__)  # else the package is installed below somebody else's checkout
        commit, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
