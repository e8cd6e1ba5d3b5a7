"""Clusters of hand-counted size, at hand-computed limits."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.postprocessing import RemoveSmallClustersd, remove_small_clusters


def make_probs(*sizes: int, length: int = 60) -> torch.Tensor:
    """Clusters of the given numbers of voxels along one line, one voxel apart, in all three regions."""
    probs = torch.full((3, 3, 3, length), 0.25)
    start = 0
    for size in sizes:
        probs[:, 1, 1, start : start + size] = 0.75
        start += size + 1
    return probs


def kept(probs: torch.Tensor) -> int:
    return int((probs[0] > 0.5).sum())


@pytest.mark.parametrize(
    ("max_size", "max_share", "expected"),
    [(0, 0.1, 45), (3, 1.0, 43), (4, 1.0, 40), (100, 0.1, 40), (100, 0.05, 45), (100, 0.0625, 43), (100, 0.0, 45)],
    ids=["off", "3 voxels stay", "3 voxels go", "a tenth", "a twentieth", "a sixteenth", "no share"],
)
def test_a_cluster_goes_only_if_it_is_below_both_limits(max_size: float, max_share: float, expected: int) -> None:
    probs = make_probs(40, 2, 3)  # a tenth of the largest are 4 voxels, a twentieth 2, a sixteenth 2.5
    assert kept(remove_small_clusters(probs, max_size, max_share)) == expected


def test_all_regions_are_cleared_and_what_stays_is_untouched() -> None:
    probs = make_probs(40, 2)
    cleared = remove_small_clusters(probs, 10)
    assert (cleared[:, 1, 1, 41:43] == 0).all()
    cleared[:, 1, 1, 41:43] = probs[:, 1, 1, 41:43]
    assert torch.equal(cleared, probs)


def test_clusters_that_touch_at_a_corner_are_one() -> None:
    probs = make_probs(40)
    probs[:, 0, 0, 40] = 0.75
    assert kept(remove_small_clusters(probs, 100)) == 41
    probs[:, 0, 0, 40:42] = torch.tensor([0.25, 0.75])
    assert kept(remove_small_clusters(probs, 100)) == 40


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["no tumor", "all tumor"])
def test_without_a_second_cluster_nothing_changes(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert torch.equal(remove_small_clusters(probs, 1e9), probs)


def test_the_limit_is_a_volume_in_cubic_millimeters() -> None:
    # Voxels of 1 x 1 x 2 mm: three are 6 mm3.
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    for max_volume, expected in ((6.0, 43), (6.1, 40)):
        data = {"pred": MetaTensor(make_probs(40, 3), affine=affine)}
        assert kept(RemoveSmallClustersd("pred", max_volume, max_share=1.0)(data)["pred"]) == expected
