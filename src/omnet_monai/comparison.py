"""The table of an ablation: rows beside the paper's, and which of the paper's differences the rows could show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnet_monai.regions import REGIONS
from omnet_monai.summary import MIN_PATIENTS, paired_differences, summarize
from omnet_monai.variants import VARIANTS

__all__ = ["Comparison", "Row"]

_HIDDEN = "not resolvable here"


@dataclass(frozen=True)
class Row:
    """
    One evaluation of one variant.

    Attributes:
        variant: a key of ``VARIANTS``.
        budget: "steps", equally many optimizer steps per network, or "time", equally long training per variant.
        place: the fold or the section that was scored.
        seed: seed of the training.
        epochs: epochs that each network was trained for.
        seconds: time that the training of all its networks took.
        cost: what ``NetworkCost`` wrote.
        dice: Dice of WT, TC, ET of each case.
        reference: of equal time, the variant whose training lasted as long.
        patients: the patient of each case that shares one with others; any other case has its own.
    """

    variant: str
    budget: str
    place: str
    seed: int
    epochs: int
    seconds: float
    cost: dict[str, float]
    dice: dict[str, list[float]]
    reference: str = ""
    patients: dict[str, str] = field(default_factory=dict)


class Comparison:
    """
    Rows of an ablation together, one line for each variant.

    Args:
        rows: the evaluations, in any order.
        reference: the variant that differences are taken to.

    Attributes:
        variants: the variants that have rows, in the order of ``VARIANTS``.
    """

    def __init__(self, rows: Sequence[Row], reference: str) -> None:
        self.rows = rows
        self.reference = reference
        present = {row.variant for row in rows}
        self.variants = [name for name in VARIANTS if name in present]
        self.timed = any(row.budget == "time" for row in rows)
        self.patients = {case: row.patients.get(case, case) for row in rows for case in row.dice}
        self.intervals = len(set(self.patients.values())) >= MIN_PATIENTS

    def seed_means(self, variant: str, budget: str = "steps") -> np.ndarray:
        """Average Dice over the cases of all places, for each seed: shape ``(seeds, 3)``."""
        return _means_by(0, self._scores(variant, budget))[1]

    def difference(self, variant: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Compare a variant with the reference on the seeds and cases that both have.

        Returns:
            Mean difference in Dice, shape ``(3,)``; and the smallest difference that can be told from 0, twice the
            standard error: of the patients, each averaged over the seeds, or of the seeds, each averaged over the
            cases, whichever is larger. It is infinite with a single patient, and knows nothing of seeds with a single
            seed.
        """
        own, others = self._scores(variant), self._scores(self.reference)
        pairs = {key: own[key] - others[key] for key in own if key in others}
        if not pairs:
            return np.full(len(REGIONS), np.nan), np.full(len(REGIONS), np.inf)
        (names, cases), (_, seeds) = (_means_by(axis, pairs) for axis in (1, 0))
        by_patient = paired_differences(cases, np.zeros_like(cases), [self.patients[name] for name in names]).error
        by_seed = paired_differences(seeds, np.zeros_like(seeds)).error
        resolved = np.where(np.isnan(by_patient), np.inf, 2 * np.fmax(by_patient, by_seed))
        return np.mean(list(pairs.values()), 0), resolved

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Lay out a header and a line for each variant; a cell of three figures holds the regions in order."""
        triple = "/".join(REGIONS)
        dice = [f"Dice {region}" for region in REGIONS]
        header = ["variant", "parameters", "passes per window", "GFLOP per case", "s per case", *dice]
        header += [f"95 % interval {triple}"] if self.intervals else []
        header += ["epochs at equal time", f"Dice {triple}, equal time"] if self.timed else []
        header += [f"paper's Dice {triple}", f"difference {triple}", "resolves", "paper's difference"]
        return header, [self._line(name) for name in self.variants]

    def markdown(self, caption: str) -> str:
        """Write what the table can resolve, the table, and its caption."""
        header, lines = self.table()
        marks = ["---", *["---:"] * (len(header) - 1)]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *lines))
        return f"{self._resolution()}\n\n{body}\n\n{caption}\n"

    def _line(self, name: str) -> list[str]:
        variant, cost = VARIANTS[name], self._cost(name)
        means = self.seed_means(name)
        spread = [f" ± {s:.3f}" for s in means.std(0, ddof=1)] if len(means) > 1 else [""] * len(REGIONS)
        cells = [
            variant.title,
            f"{cost['parameters']:,.0f}",
            f"{cost['passes_per_window']:.2f}",
            f"{cost['flops_per_case'] / 1e9:,.1f}",
            f"{cost['seconds_per_case']:.2f}",
            *(f"{mean:.3f}{s}" for mean, s in zip(means.mean(0), spread, strict=True)),
        ]
        if self.intervals:
            names, scores = _means_by(1, self._scores(name))
            ends = summarize(scores, [self.patients[case] for case in names])
            interval = "/".join(f"{low:.3f}-{high:.3f}" for low, high in zip(ends.low, ends.high, strict=True))
            cells.append(interval if ends.interval else "-")
        if self.timed:
            budget = "steps" if name == self.reference else "time"
            epochs = [row.epochs for row in self.rows if (row.variant, row.budget) == (name, budget)]
            cells += (
                [f"{np.mean(epochs):.1f}", _triple(self.seed_means(name, budget).mean(0))] if epochs else ["-", "-"]
            )
        cells.append("-" if variant.paper is None else _triple(variant.paper, "{:.4f}"))
        if name == self.reference:
            return [*cells, "-", "-", "-"]
        mean, resolved = self.difference(name)
        return [*cells, _triple(mean, "{:+.3f}"), _triple(resolved), self._paper_difference(name, resolved)]

    def _paper_difference(self, name: str, resolved: np.ndarray) -> str:
        paper, reference = VARIANTS[name].paper, VARIANTS[self.reference].paper
        if paper is None or reference is None:
            return "-"
        # The paper has four digits; a thousandth of the last one makes up for rounding.
        effects = [p - r for p, r in zip(paper, reference, strict=True)]
        texts = [
            f"{effect:+.4f}" if abs(effect) + 1e-7 >= limit else _HIDDEN
            for effect, limit in zip(effects, resolved, strict=True)
        ]
        return _HIDDEN if set(texts) == {_HIDDEN} else " / ".join(texts)

    def _resolution(self) -> str:
        others = [self.difference(name)[1] for name in self.variants if name != self.reference]
        title = VARIANTS[self.reference].title
        if not others or self.reference not in self.variants:
            return f"No difference to {title} can be taken: a row of it and one of another variant are needed."
        least = (
            f"Smallest difference in Dice {'/'.join(REGIONS)} that this table resolves: {_triple(np.max(others, 0))}"
        )
        single = " It knows nothing of other seeds." if len({row.seed for row in self.rows}) == 1 else ""
        return (
            f"{least}, twice the standard error of the paired differences to {title}, in the row where it is largest."
            f"{single}"
        )

    def _cost(self, name: str) -> dict[str, float]:
        costs: list[dict[str, Any]] = [row.cost for row in self.rows if row.variant == name]
        return {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}

    def _scores(self, variant: str, budget: str = "steps") -> dict[tuple[int, str], np.ndarray]:
        rows = [row for row in self.rows if (row.variant, row.budget) == (variant, budget)]
        return {(row.seed, case): np.array(dice) for row in rows for case, dice in row.dice.items()}


def _means_by(axis: int, scores: dict[tuple[int, str], np.ndarray]) -> tuple[list[Any], np.ndarray]:
    """Average scores by seed, axis 0, or by case, axis 1: the names, and their means of shape ``(names, 3)``."""
    names = sorted({key[axis] for key in scores})
    return names, np.array([np.mean([v for key, v in scores.items() if key[axis] == name], 0) for name in names])


def _triple(values: Sequence[float] | np.ndarray, form: str = "{:.3f}") -> str:
    return "/".join(form.format(value) if np.isfinite(value) else "-" for value in values)
