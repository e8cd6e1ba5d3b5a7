"""Normalized channels beside hand-computed values and MONAI's own."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity

from omnet_monai.normalization import SLAB, NormalizeNonzerod

SHAPE = (2 * SLAB + 3, 5, 4)


def normalize(image: torch.Tensor) -> torch.Tensor:
    return NormalizeNonzerod("image")({"image": image})["image"]


@pytest.fixture
def brain() -> torch.Tensor:
    """Channels of other scales, one of them negative in part, 0 in the same third of the volume."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, *SHAPE, generator=generator) * torch.tensor([1.0, 30, 2]).reshape(3, 1, 1, 1)
    image += torch.tensor([0.5, 700, -4]).reshape(3, 1, 1, 1)
    return image * (torch.rand(SHAPE, generator=generator) > 1 / 3)


def test_voxels_that_are_not_0_get_mean_0_and_deviation_1() -> None:
    image = torch.zeros(2, *SHAPE)
    image[0, 0, 0, :2] = torch.tensor([2.0, 4.0])  # mean 3, deviation 1
    image[1, -1, 0, :4] = torch.tensor([-3.0, 1.0, 1.0, 5.0])  # mean 1, deviation the root of (16 + 16) / 4
    normalized = normalize(image)
    assert normalized[0, 0, 0].tolist() == [-1, 1, 0, 0]
    assert normalized[1, -1, 0].tolist() == pytest.approx([-(2**0.5), 0, 0, 2**0.5])
    assert int(torch.count_nonzero(normalized)) == 4


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1)], ids=["last axis innermost", "first axis innermost"])
def test_it_is_what_monai_returns_whatever_the_order_in_memory(brain: torch.Tensor, order: tuple[int, ...]) -> None:
    image = brain.permute(order).contiguous().permute(order)
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(brain.clone())
    torch.testing.assert_close(normalize(image), expected.as_tensor(), rtol=1e-5, atol=1e-6)
    assert normalize(image).is_contiguous()


def test_the_image_given_stays_and_what_is_known_of_it_is_kept(brain: torch.Tensor) -> None:
    image = MetaTensor(brain.clone(), meta={"case": "p1"})
    normalized = normalize(image)
    assert torch.equal(image.as_tensor(), brain)
    assert isinstance(normalized, MetaTensor)
    assert normalized.meta["case"] == "p1"


def test_integers_become_float32() -> None:
    image = torch.zeros(1, *SHAPE, dtype=torch.int16)
    image[0, 0, 0, :2] = torch.tensor([2, 4])
    assert normalize(image).dtype == torch.float32
    assert normalize(image)[0, 0, 0].tolist() == [-1, 1, 0, 0]


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1234.567, -7.7e5])
def test_a_channel_of_one_value_becomes_0(value: float) -> None:
    image = torch.zeros(1, 40, 40, 40)
    image[:, 3:37, 3:37, 3:35] = value  # a mean of 0.1, added up in float32, is another number
    assert not normalize(image).any()


def test_a_small_spread_on_a_large_mean_is_none_too_small() -> None:
    image = torch.full((1, *SHAPE), 10_000.0)
    image[0, ::2] += 1  # 18 planes of 35
    assert normalize(image).std(correction=0) == pytest.approx(1, abs=1e-3)
