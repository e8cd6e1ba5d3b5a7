"""
Fit and score the weights by which a wrong order of sequences is noticed, in the folder of a clone.

  python benchmarks/sequence_order.py CASES...    the table of weights, and how often it is right, leaving each case out

The weights are the ridge regression that puts the right order of each case 1 above the 23 others; no constant.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import fire
import numpy as np

from omnet_monai.datalist import read_images
from omnet_monai.loading import LoadCased
from omnet_monai.regions import SEQUENCES
from omnet_monai.report import format_table
from omnet_monai.sequence_order import MARGIN, bright_ranks, order_scores

RIDGE = 0.1


def main(*folders: str, cache: str = "") -> None:
    """
    Print the weights of all cases, then for each pair of sequences how often its exchange is noticed, and named.

    Args:
        folders: folders of cases, one case per patient.
        cache: .npz file to keep what was measured in, so that a second run reads no image.
    """
    ranks = _measure(folders, cache)
    print("weights of all cases:", np.array2string(fit(list(ranks.values())), precision=3, separator=", "), sep="\n")
    noticed, named = ({pair: 0 for pair in combinations(range(len(SEQUENCES)), 2)} for _ in range(2))
    false: list[str] = []
    rows: list[list[str | float]] = []
    for case, held_out in ranks.items():
        weights = fit([other for name, other in ranks.items() if name != case])
        scores = order_scores(held_out, weights)
        best = max(scores, key=lambda order: scores[order])
        runner_up = max(score for order, score in scores.items() if order != SEQUENCES)
        rows.append([case, scores[SEQUENCES] - runner_up])
        false += [case] if scores[best] - scores[SEQUENCES] > MARGIN else []
        for pair in noticed:
            # With two channels exchanged, the order that says so has the score of the right one.
            noticed[pair] += scores[best] - scores[_exchanged(pair)] > MARGIN
            named[pair] += best == SEQUENCES
    print("\n" + format_table(["left out", "right order above every other"], rows))
    table: list[list[str | float]] = [
        ["/".join(SEQUENCES[n] for n in pair), noticed[pair] / len(ranks), named[pair] / len(ranks)] for pair in noticed
    ]
    print("\n" + format_table([f"exchanged, of {len(ranks)}", "noticed", "right order named"], table))
    print(f"\nfalse alarms: {len(false)} of {len(ranks)} {' '.join(false)}")


def fit(cases: list[np.ndarray]) -> np.ndarray:
    """Fit the weights to the ranks of cases, each of shape ``(4, 4)``, whose channels are in the order of SEQUENCES."""
    size = len(SEQUENCES)
    units = np.eye(size * size).reshape(-1, size, size)
    # A score is linear in the weights: its features are the scores by unit weights.
    orders = [np.array([list(order_scores(ranks, unit).values()) for unit in units]).T for ranks in cases]
    features = np.concatenate(orders)
    scale = features.std(0)
    scale[scale == 0] = np.inf
    right = list(order_scores(cases[0])).index(SEQUENCES)
    above = np.concatenate([each[right] - np.delete(each, right, axis=0) for each in orders]) / scale
    gram = above.T @ above + RIDGE * len(above) * np.eye(above.shape[1])
    weights = (np.linalg.solve(gram, above.sum(0)) / scale).reshape(size, size)
    return weights * ~np.eye(size, dtype=bool)  # where a sequence is brightest its own rank tells nothing


def _exchanged(pair: tuple[int, int]) -> tuple[str, ...]:
    order = list(SEQUENCES)
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    return tuple(order)


def _measure(folders: tuple[str, ...], cache: str) -> dict[str, np.ndarray]:
    try:
        return dict(np.load(cache))
    except OSError:
        pass
    load = LoadCased()
    cases: list[dict[Any, Any]] = [case for folder in folders for case in read_images(folder)]
    ranks = {case["case"]: bright_ranks(load(case)["image"].numpy()) for case in cases}
    if cache:
        np.savez(cache, allow_pickle=False, **ranks)
    return ranks


if __name__ == "__main__":
    fire.Fire(main, name="python benchmarks/sequence_order.py")
