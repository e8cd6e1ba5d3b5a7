"""Chances of error and expected Dice of probabilities that are known by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from omnet_monai.uncertainty import ChanceOfErrord, chance_of_error, region_uncertainty


def test_the_chance_of_error_is_that_of_the_label() -> None:
    # Columns: sure background; background against 0.4; edema by 0.4, whatever ET says; NCR/NET by 0.8 and 0.75 of 0.9;
    # enhancing by 0.6 of each; tumor of 0.95 that is left out all the same.
    probs = torch.tensor(
        [[0.0, 0.4, 0.4, 0.9, 0.6, 0.95], [1.0, 0.5, 0.0, 0.8, 0.6, 0.9], [0.0, 0.5, 0.7, 0.25, 0.6, 0.9]]
    )
    codes = torch.tensor([[0, 0, 2, 1, 4, 0]])  # as BraTS wrote them up to 2022
    expected = torch.tensor([[0.0, 0.4, 0.6, 1 - 0.9 * 0.8 * 0.75, 1 - 0.6**3, 0.95]])
    transform = ChanceOfErrord("probs", "doubt", label_key="label", scheme="brats2017")
    data = transform({"probs": probs, "label": codes})
    torch.testing.assert_close(data["doubt"], expected)
    assert data["probs"] is probs
    assert data["label"] is codes


def test_uncertainty_is_one_minus_the_dice_expected_inside_the_region_around() -> None:
    probs = torch.tensor([[1.0, 0.8, 0.6, 0.2], [0.9, 0.5, 0.4, 1.0], [0.7, 0.3, 1.0, 1.0]])
    masks = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    values = region_uncertainty(probs, masks)
    # WT: 2 * 2.4 of 2.6 + 3. TC, whose last voxel lies outside WT: 2 * 1.4 of 1.8 + 2. ET: none of 1 + 0.
    expected = {"WT": 1 - 4.8 / 5.6, "TC": 1 - 2.8 / 3.8, "ET": 1.0}
    assert values == pytest.approx({f"uncertainty_{region}": value for region, value in expected.items()})


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_what_is_sure_everywhere_has_no_uncertainty(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert set(region_uncertainty(probs, probs > 0.5).values()) == {0.0}
    assert chance_of_error(probs, probs > 0.5).abs().max() == 0


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
def test_what_is_labeled_against_all_probability_is_wrong_for_sure(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    torch.testing.assert_close(chance_of_error(probs, probs < 0.5), torch.ones(1, 4, 4, 4))


def test_an_empty_region_of_hardly_any_probability_is_no_doubt() -> None:
    probs = torch.full((3, 10), 0.01)
    assert set(region_uncertainty(probs, probs > 0.5).values()) == {0.0}


@pytest.mark.parametrize("errors", [(0, 0), (0, 4)], ids=["in no case", "in one of two"])
def test_the_benchmark_looks_for_errors_in_the_cases_that_have_some(
    errors: tuple[int, int], load_script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    def result(wrong: int, dice: float) -> dict[str, Any]:
        # 20 voxels, one at the highest level. Among 5 % of the case's voxels, that one, is 1 of 4 wrong ones. Among 5 %
        # of the voxels of both cases, 2 at the highest level, are as many.
        levels, caught = [[1, 19], [min(wrong, 1), max(wrong - 1, 0)]], min(wrong, 1)
        bins = [[[20.0, 0.5, 0.5]]] * 3
        return {
            **{"seconds": 1.0, "dice": [dice] * 3, "uncertainty": [1 - dice] * 3, "brain": 20, "wrong": wrong},
            **{"caught": {"chance of error": caught}, "levels": {"chance of error": levels}, "bins": bins},
        }

    script = load_script("uncertainty")
    script._print({f"p{n}": {"default": result(wrong, 1 - wrong / 10 - n / 100)} for n, wrong in enumerate(errors)})
    lines = [line for line in capsys.readouterr().out.splitlines() if "chance of error" in line]
    assert [line.split()[-4:] for line in lines] == [["0.250"] * 4] * any(errors)
