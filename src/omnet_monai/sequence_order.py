"""Tell from the intensities of four sequences whether they come in the order that they are said to."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy.stats import rankdata

from omnet_monai.regions import SEQUENCES

__all__ = ["MARGIN", "WEIGHTS", "bright_ranks", "likely_order", "order_scores"]

BRIGHT = 0.03
"""Share of the brain's voxels that count as a sequence's brightest."""

VOXELS = 20_000
"""About how many voxels of the brain are looked at, evenly spread."""

MARGIN = 0.05
"""By how much the score of another order must be higher to be spoken of."""

WEIGHTS = np.array(
    [
        [0.0, 0.607, -0.334, 0.102],
        [-0.369, 0.0, 0.201, 0.136],
        [-0.259, -0.474, 0.0, -0.245],
        [0.05, -0.221, 0.807, 0.0],
    ]
)
"""What the rank of a sequence (column) counts where another (row) is brightest, both in the order of ``SEQUENCES``;
fitted to 15 brains by ``benchmarks/sequence_order.py``."""


def likely_order(image: np.ndarray) -> tuple[tuple[str, ...], float]:
    """
    Find the order that four sequences most likely have.

    Args:
        image: the sequences as they came, background 0, shape ``(4, *spatial)``.

    Returns:
        The sequence that each channel most likely is, and by how much the score of that order exceeds the score of
        ``SEQUENCES``: 0 if that is the likely one; a right order is typically 0.1 to 0.7 above every other.

    Raises:
        ValueError: if there are fewer than 100 voxels in which no sequence is 0.
    """
    scores = order_scores(bright_ranks(image))
    best = max(scores, key=lambda order: scores[order])
    return best, scores[best] - scores[SEQUENCES]


def bright_ranks(image: np.ndarray) -> np.ndarray:
    """
    Measure how bright each channel is where another is brightest: fluid where T2 is, vessels and enhancing tumor where
    T1c is, edema where FLAIR is, white matter where T1 is. Ranks, so that no scale of intensities matters.

    Args:
        image: channels with background 0, shape ``(C, *spatial)``.

    Returns:
        Mean rank, in [0, 1], of channel ``j`` in the brightest 3 % of channel ``i``, shape ``(C, C)``.

    Raises:
        ValueError: if there are fewer than 100 voxels in which no channel is 0.
    """
    inside = np.flatnonzero((image != 0).all(0))
    if len(inside) < 100:
        raise ValueError(f"the order of sequences is told from at least 100 voxels of brain, got {len(inside)}")
    voxels = image.reshape(len(image), -1)[:, inside[:: max(len(inside) // VOXELS, 1)]]
    ranks = rankdata(voxels, axis=1) / voxels.shape[1]
    # Where many voxels share the highest value, as in saturated images, their mean rank is lower than that.
    return np.stack([ranks[:, channel >= min(1 - BRIGHT, channel.max())].mean(1) for channel in ranks])


def order_scores(ranks: np.ndarray, weights: np.ndarray | None = None) -> dict[tuple[str, ...], float]:
    """
    Score every order that four channels may have.

    Args:
        ranks: what :func:`bright_ranks` measured.
        weights: ``None`` for ``WEIGHTS``.

    Returns:
        The sum of weighted ranks for each of the 24 permutations of ``SEQUENCES``, the n-th entry of which says what
        channel n is.
    """
    table = WEIGHTS if weights is None else weights
    scores = {}
    for order in permutations(SEQUENCES):
        channels = [order.index(sequence) for sequence in SEQUENCES]
        scores[order] = float((table * ranks[np.ix_(channels, channels)]).sum())
    return scores
