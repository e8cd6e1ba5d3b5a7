"""What an evaluation leaves behind: a table of every case, a log line of every look at test cases, overlay pictures."""

from __future__ import annotations

import csv
import hashlib
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from omnet_monai.files import whole_file
from omnet_monai.regions import REGIONS, SEQUENCES

__all__ = ["CaseTable", "EvaluationLog", "format_table", "save_overlay", "write_csv"]

logger = logging.getLogger(__name__)


class CaseTable:
    """
    Collect a region metric of every case, publish its mean per region (``dice_WT``, ...) among the engine's metrics,
    print the table, and write it as CSV.

    Args:
        details: name of the engine's metric whose details are tabled, shape ``(cases, 3)``.
        metric: prefix of the published names.
        path: CSV file to write, ``None`` for none. It is written whole or not at all.
    """

    def __init__(self, details: str = "dice_mean", metric: str = "dice", path: str | Path | None = None) -> None:
        self.details = details
        self.metric = metric
        self.path = path
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
            if self.path is not None:
                write_csv(self.path, header, rows)


class EvaluationLog:
    """
    Append one line to a log of evaluations: date, commit, command, SHA-256 of the weights, scores of every case.
    Weights that no checkpoint loader read, such as those of a federated round, have no sum.

    Args:
        path: CSV file to append to; it is begun with a header.
        table: path of the CSV that :class:`CaseTable` wrote.
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
        rows = _read_rows(self.table)
        scores = "; ".join(f"{case} {'/'.join(f'{float(value):.3f}' for value in values)}" for case, *values in rows)
        weights: Path | None = getattr(engine.state, "weights", None)
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "not from a file"
        module = "omnet_monai" if "omnet_monai" in sys.argv[0] else "monai.bundle"
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        line = [datetime.now(UTC).strftime("%Y-%m-%d"), _commit(), command, sha256, scores]
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


def save_overlay(
    image: torch.Tensor | np.ndarray,
    label: torch.Tensor | np.ndarray,
    path: str | Path,
    truth: torch.Tensor | np.ndarray | None = None,
    title: str = "",
) -> None:
    """
    Draw a case in three planes through the tumor's center: FLAIR with the outline of WT, T1c with those of TC and ET.

    Args:
        image: the four sequences in the order of ``SEQUENCES``, LPS axes, shape ``(4, H, W, D)``.
        label: predicted inner classes, shape ``(1, H, W, D)`` or ``(H, W, D)``.
        path: PNG file to write.
        truth: true inner classes, drawn dashed, ``None`` for none.
        title: text above the picture.
    """
    import matplotlib.pyplot as plt  # here, because it takes longer to import than everything else

    image, label = np.asarray(image, dtype=np.float32), np.asarray(label).reshape(np.shape(image)[1:])
    reference = label if truth is None else np.asarray(truth).reshape(label.shape)
    tumor = np.argwhere((reference if reference.any() else label) > 0)
    center = np.median(tumor, axis=0).astype(int) if len(tumor) else np.array(label.shape) // 2
    views = {"axial": 2, "coronal": 1, "sagittal": 0}
    figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), facecolor="black", layout="constrained")
    for row, (sequence, regions) in enumerate({"flair": ["WT"], "t1c": ["TC", "ET"]}.items()):
        volume = image[SEQUENCES.index(sequence)]
        for axis, (view, normal) in zip(axes[row], views.items(), strict=True):
            axis.imshow(_slice(volume, normal, center), cmap="gray", vmin=0, vmax=np.percentile(volume, 99.8))
            for source, style in ((label, "solid"), (truth, "dashed")):
                if source is not None:
                    _draw_outlines(
                        axis, _slice(np.asarray(source).reshape(label.shape), normal, center), regions, style
                    )
            axis.set_title(f"{sequence.upper()} {view}", color="white", fontsize=9)
            axis.axis("off")
    figure.suptitle(title, color="white", fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _read_rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _slice(volume: np.ndarray, normal: int, center: np.ndarray) -> np.ndarray:
    """Cut a plane out of an LPS volume so that anterior or superior is up and the patient's right is left."""
    plane = np.take(volume, center[normal], axis=normal).T
    return plane if normal == 2 else plane[::-1]


def _draw_outlines(axis: Any, plane: np.ndarray, regions: Sequence[str], style: str) -> None:
    colors = {"WT": "#ffd21f", "TC": "#ff4b4b", "ET": "#35d0ff"}
    for region in regions:
        mask = np.isin(plane, REGIONS[region])
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=colors[region], linewidths=0.9, linestyles=style)


def _commit() -> str:
    """Return the short hash of the checkout's commit, with a mark if it was changed; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
