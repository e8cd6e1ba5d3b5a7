"""What is found in images before they are segmented."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.checks import check_image
from omnet_monai.sequence_order import likely_order

SIZE = 72


def make_image(spacing: float = 2.0) -> MetaTensor:
    """A ball of 31 voxels' radius, 998 ml at 2 mm, whose sequences T1, T1c, T2, FLAIR have nothing in common."""
    rng = np.random.default_rng(0)
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    inside = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= 31**2
    image = np.where(inside, rng.integers(100, 1000, (4, SIZE, SIZE, SIZE)), 0).astype(np.float32)
    return MetaTensor(torch.from_numpy(image), affine=torch.diag(torch.tensor([-spacing, -spacing, spacing, 1.0])))


@pytest.fixture(autouse=True)
def order_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise has no order."""
    monkeypatch.setattr("omnet_monai.checks.likely_order", lambda image: (("t1", "t1c", "t2", "flair"), 0.0))


def shift(image: MetaTensor) -> None:
    image[3] = torch.roll(image[3], 5, 0)


def fill(image: MetaTensor) -> None:
    image[image == 0] = 5.0


def cut(image: MetaTensor) -> None:
    image[..., : SIZE // 2] = 0
    image[:] = torch.roll(image, SIZE // 2, -1)


def divide(image: MetaTensor) -> None:
    image[0] /= 1000


def standardize(image: MetaTensor) -> None:
    inside = image[1] != 0
    image[1][inside] = (image[1][inside] - image[1][inside].mean()) / image[1][inside].std()


def lower(image: MetaTensor) -> None:
    image[2][image[2] != 0] -= 190.5  # a tenth of the values 100 to 999 is below


def round_off(image: MetaTensor) -> None:
    image[3] = torch.ceil(image[3] / 100) / 4


def to_8_bits(image: MetaTensor) -> None:
    image[3] = torch.ceil(image[3] / image[3].max() * 250)


def test_an_image_as_it_should_be_has_no_findings() -> None:
    assert check_image(make_image()) == []


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (shift, r"registration: what is not 0 in t1 and flair overlaps with a Dice of 0\.88"),
        (fill, r"brain: 2986 ml are not 0, a brain has less; is the skull stripped"),
        (cut, r"brain: 49\d ml are not 0, an adult's brain has more"),
        (divide, r"normalized: t1 has a maximum of 1\.00, it seems scaled to \[0, 1\]"),
        (standardize, r"normalized: t1c has mean -?0\.00 and standard deviation 1\.00, it seems to be z-scores"),
        (lower, r"negative: 10\.\d% of t2 are below 0"),
        (round_off, r"levels: flair has 10 different intensities"),
        (to_8_bits, r"levels: flair has whole numbers up to 250; was it scaled and rounded to 8 bits"),
    ],
    ids=["shifted", "with skull", "half", "scaled to 1", "z-scores", "negative", "rounded", "8 bits"],
)
def test_a_spoiled_image_is_found_out_with_its_number(spoil: Callable[[MetaTensor], None], finding: str) -> None:
    image = make_image()
    spoil(image)
    assert any(re.match(finding, found) for found in check_image(image)), check_image(image)


def test_a_brain_that_ends_at_the_side_of_the_volume_is_cropped() -> None:
    image = make_image()
    found = check_image(image[..., 10:])
    # The cut is at 25.5 voxels from the center: a disc of pi * (31^2 - 25.5^2) = 976 of 5184 voxels.
    assert found == ["cropped: 19% of a side of the volume are brain; it may have been cut off there"]


def test_a_spacing_far_from_1_mm_is_named_and_so_is_a_volume_that_no_brain_has() -> None:
    found = check_image(make_image(0.49))
    assert [text.split(":")[0] for text in found] == ["spacing", "brain"]
    assert "0.49 x 0.49 x 0.49 mm" in found[0]
    assert "brain: 15 ml are not 0" in found[1]


def test_a_wrong_order_is_found_with_the_likely_one_and_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = ("t1c", "t1", "t2", "flair")
    monkeypatch.setattr("omnet_monai.checks.likely_order", lambda image: (guess, 0.25))
    (found,) = check_image(make_image())
    assert found.startswith("order: given as t1, t1c, t2, flair the images look like t1c, t1, t2, flair, ")
    assert "by 0.25" in found


def test_the_likely_order_of_channels_is_named_in_the_places_in_which_they_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess = ("t1c", "t2", "t1", "flair")  # what was given as t1 looks like t1c, that as t1c like t2, that as t2 like t1
    monkeypatch.setattr("omnet_monai.checks.likely_order", lambda image: (guess, 0.25))
    (found,) = check_image(make_image(), ["flair", "t1", "t1c", "t2"])
    assert found.startswith("order: given as flair, t1, t1c, t2 the images look like flair, t1c, t2, t1, ")


def test_a_hardly_higher_score_of_another_order_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = ("t1c", "t1", "t2", "flair")
    monkeypatch.setattr("omnet_monai.checks.likely_order", lambda image: (guess, 0.04))
    assert check_image(make_image()) == []


def test_too_few_voxels_to_tell_the_order_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnet_monai.checks.likely_order", likely_order)
    image = torch.zeros(4, 16, 16, 16)
    image[:, 5:8, 5:8, 5:8] = torch.arange(1.0, 28.0).reshape(3, 3, 3)
    image = MetaTensor(image, affine=torch.diag(torch.tensor([12.0, 12, 12, 1])))
    assert "order" not in [text.split(":")[0] for text in check_image(image)]


def test_a_sequence_that_is_missing_is_named_and_the_others_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnet_monai.checks.likely_order", lambda image: pytest.fail("the order is told from all four"))
    image = make_image()
    image[2] = 0
    (found,) = check_image(image)
    assert found.startswith("missing: t2, taken for the mean of the brain; ")
    assert "a mean Dice WT/TC/ET of 0.83/0.72/0.77 on nine cases instead of 0.85/0.74/0.78; the order" in found
    shift(image)
    assert [text.split(":")[0] for text in check_image(image)] == ["registration", "missing"]
    image[1] = 0
    assert "missing: t1c, t2, " in check_image(image)[-1]
    assert "were not tried without several; the order" in check_image(image)[-1]


def test_what_cannot_be_a_brain_is_refused() -> None:
    for spacing, extent in ((1000.0, "62000.0"), (0.01, "0.6"), (0.001, "0.1")):  # 62 voxels
        with pytest.raises(ValueError, match=f"must measure 30 to 500 mm, got {extent} mm: is the affine in mm"):
            check_image(make_image(spacing))
    image = make_image()
    image[0, : SIZE // 2] = 0
    image[1, SIZE // 2 :] = 0
    with pytest.raises(ValueError, match="a voxel must be other than 0 in all sequences, got none"):
        check_image(image)
