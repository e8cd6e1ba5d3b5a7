"""Whether four sequences come in the order that they are said to."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from omnet_monai.loading import LoadCased
from omnet_monai.regions import SEQUENCES
from omnet_monai.sequence_order import MARGIN, bright_ranks, likely_order, order_scores

# Of 100 voxels: white matter, gray matter, fluid, edema, enhancing tumor or vessels; and how bright each sequence is.
TISSUES = (45, 35, 10, 7, 3)
BRIGHTNESS = {
    "t1": (1.0, 0.7, 0.2, 0.6, 0.65),
    "t1c": (1.0, 0.75, 0.2, 0.6, 1.6),
    "t2": (0.4, 0.6, 1.6, 1.1, 0.9),
    "flair": (0.5, 0.7, 0.15, 1.4, 1.1),
}
PAIRS = list(combinations(range(4), 2))


def make_brain(voxels: int = 20_000) -> np.ndarray:
    """Four sequences of a brain of five tissues with noise, and background around it."""
    rng = np.random.default_rng(0)
    tissue = np.repeat(np.arange(5), np.array(TISSUES) * voxels // 100)
    image = np.zeros((4, 2 * voxels))
    for channel, sequence in enumerate(SEQUENCES):
        image[channel, voxels:] = 300 * (np.array(BRIGHTNESS[sequence])[tissue] + rng.normal(0, 0.08, voxels)) + 100
    return image.reshape(4, 2, 100, -1)


def exchange(image: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    order = list(range(4))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return image[order]


def test_a_rank_is_the_mean_one_where_another_channel_is_brightest() -> None:
    rising = np.arange(1.0, 201.0)
    # The brightest 3 % of 200 voxels are seven, as the rank of 0.97 is among them: 194 to 200, in the other 7 to 1.
    expected = np.array([[197 / 200, 4 / 200], [4 / 200, 197 / 200]])
    np.testing.assert_allclose(bright_ranks(np.stack([rising, rising[::-1]])), expected)


def test_no_scale_of_intensities_matters() -> None:
    image = make_brain()
    scaled = np.where(image == 0, 0, np.exp(image / 200) * np.array([1, 10, 0.1, 3]).reshape(4, 1, 1, 1))
    np.testing.assert_allclose(bright_ranks(scaled), bright_ranks(image))


def test_the_right_order_is_taken_for_right() -> None:
    assert likely_order(make_brain()) == (SEQUENCES, 0.0)


@pytest.mark.parametrize("pair", PAIRS, ids=["/".join(SEQUENCES[n] for n in pair) for pair in PAIRS])
def test_two_exchanged_sequences_are_named(pair: tuple[int, int]) -> None:
    order, margin = likely_order(exchange(make_brain(), pair))
    expected = list(SEQUENCES)
    expected[pair[0]], expected[pair[1]] = SEQUENCES[pair[1]], SEQUENCES[pair[0]]
    assert order == tuple(expected)
    assert margin > 0


def test_a_score_is_the_sum_of_weighted_ranks_of_what_the_channels_are_said_to_be() -> None:
    weights, ranks = np.zeros((4, 4)), np.arange(16.0).reshape(4, 4)
    weights[0, 2] = 1.0  # T2 where T1 is brightest
    scores = order_scores(ranks, weights)
    assert len(scores) == 24
    assert scores["t1", "t1c", "t2", "flair"] == ranks[0, 2]
    assert scores["t2", "flair", "t1c", "t1"] == ranks[3, 0]


def test_a_wrong_order_is_noticed_though_many_voxels_share_the_highest_value() -> None:
    image = make_brain()
    for channel in image:
        np.minimum(channel, np.percentile(channel[channel > 0], 90), out=channel)  # a tenth of the brain is saturated
    assert np.isfinite(bright_ranks(image)).all()
    order, margin = likely_order(exchange(image, (0, 2)))
    assert order == ("t2", "t1c", "t1", "flair")
    assert margin > MARGIN


def test_an_order_is_not_told_from_a_handful_of_voxels() -> None:
    image = np.ones((4, 10, 10, 10))
    image[2, 1:] = 0
    image[1, 0, 0, 0] = 0
    with pytest.raises(ValueError, match="from at least 100 voxels of brain, got 99"):
        likely_order(image)


@pytest.mark.real_data
def test_real_sequences_are_told_apart(data_root: Path) -> None:
    image = LoadCased()({"image": str(data_root / "cases" / "BraTS2021_00009")})["image"].numpy()
    assert likely_order(image)[0] == SEQUENCES
    for pair in PAIRS:
        assert likely_order(exchange(image, pair))[0] != SEQUENCES
