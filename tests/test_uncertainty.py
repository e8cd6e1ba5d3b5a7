"""Entropies and expected Dice of probabilities that are known by hand."""

from __future__ import annotations

import pytest
import torch

from omnet_monai.uncertainty import RegionEntropyd, region_entropy, region_uncertainty


def test_entropy_is_that_of_three_coins_in_bits() -> None:
    # Columns: all sure; all at one half; one at one half; one quarter, whose entropy is 2 - 3/4 log2(3) = 0.8113.
    probs = torch.tensor([[0.0, 0.5, 0.5, 0.25], [1.0, 0.5, 1.0, 0.25], [0.0, 0.5, 0.0, 0.75]])
    expected = torch.tensor([[0.0, 1.0, 1 / 3, 0.811278]])
    torch.testing.assert_close(region_entropy(probs), expected)
    image = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, -1.0, 2.0, 0.0]])  # the last voxel is background
    data = RegionEntropyd("probs", "entropy")({"probs": probs, "image": image})
    torch.testing.assert_close(data["entropy"], expected * torch.tensor([1, 1, 1, 0]))
    assert data["probs"] is probs


def test_uncertainty_is_one_minus_the_expected_dice() -> None:
    probs = torch.tensor([[1.0, 0.8, 0.2, 0.0]] * 3)
    masks = torch.tensor([[True, True, False, False], [True, True, True, True], [False] * 4])
    values = region_uncertainty(probs, masks)
    assert values == pytest.approx({"uncertainty_WT": 1 - 3.6 / 4, "uncertainty_TC": 1 - 4 / 6, "uncertainty_ET": 1.0})


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_what_is_sure_everywhere_has_no_uncertainty(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert set(region_uncertainty(probs, probs > 0.5).values()) == {0.0}
    assert region_entropy(probs).abs().max() == 0


def test_an_empty_region_of_hardly_any_probability_is_no_doubt() -> None:
    probs = torch.full((3, 10), 0.01)
    assert set(region_uncertainty(probs, probs > 0.5).values()) == {0.0}
