"""Windows placed where something is wanted: which they are, and how they are blended."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from omnet_monai.windows import place_windows, run_placed


def starts(windows: list[tuple[slice, ...]]) -> list[tuple[int, ...]]:
    return [tuple(side.start for side in window) for window in windows]


def line(size: int, *stretches: tuple[int, int]) -> torch.Tensor:
    wanted = torch.zeros(size, dtype=torch.bool)
    for first, last in stretches:
        wanted[first : last + 1] = True
    return wanted


@pytest.mark.parametrize(
    ("wanted", "overlap", "expected"),
    [
        (line(40, (20, 20)), 0.0, [17]),  # 8 voxels from 17 to 24, of which 20 has three before and four behind
        (line(40, (20, 27)), 0.0, [20]),
        (line(40, (20, 28)), 0.0, [17, 25]),  # 16 voxels for 9, three before and four behind
        (line(40, (20, 28)), 0.25, [18, 24]),  # 14 voxels, of which two are in both
        (line(40, (20, 20), (26, 27)), 0.0, [20]),  # a gap within a window
        (line(40, (4, 4), (30, 31)), 0.0, [1, 27]),  # and one that is none's
        (line(40, (0, 2)), 0.0, [0]),  # moved inward at the ends
        (line(40, (38, 39)), 0.0, [32]),
        (line(13, (0, 12)), 0.0, [0, 5]),  # two windows have more than there is
        (line(8, (3, 3)), 0.5, [0]),
        (line(40), 0.0, []),
    ],
    ids=["a voxel", "a window", "more", "overlap", "gap", "far gap", "start", "end", "all", "small", "nothing"],
)
def test_windows_on_a_line_are_few_and_reach_as_far_beyond_both_ends(wanted, overlap, expected) -> None:
    assert starts(place_windows(wanted, [8], overlap)) == [(start,) for start in expected]


def test_each_slab_and_each_row_begins_where_something_is_wanted() -> None:
    wanted = torch.zeros(32, 32, 16, dtype=torch.bool)
    wanted[2:10, 4:12, 0:4] = True  # a window of its own,
    wanted[8:16, 20:28, 4:8] = True  # and one in the next slab, which a grid of windows would meet in four
    assert starts(place_windows(wanted, [8, 8, 4], 0.0)) == [(2, 4, 0), (8, 20, 4)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, (0.5, 0.0, 0.25)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_every_wanted_voxel_lies_in_a_window_and_every_window_in_the_image(seed: int, overlap) -> None:
    noise = torch.rand(1, 1, 5, 4, 3, generator=torch.Generator().manual_seed(seed))
    wanted = torch.nn.functional.interpolate(noise, (37, 29, 16), mode="trilinear")[0, 0] > 0.6
    windows = place_windows(wanted, [8, 8, 4], overlap)
    held = torch.zeros_like(wanted)
    for window in windows:
        assert wanted[window].any()
        assert wanted[window].shape == (8, 8, 4)
        held[window] = True
    assert held[wanted].all()


@pytest.mark.parametrize("batch", [1, 3])
def test_placed_windows_are_blended_with_each_other_and_with_what_was_found(batch: int) -> None:
    image, found = torch.arange(20.0)[None], torch.full((1, 20), 0.5)
    sliding = SlidingWindowInferer([8], batch, overlap=0.25, mode="constant")
    ran: list[list[float]] = []

    def first_voxel(windows: torch.Tensor) -> torch.Tensor:
        """Answer the value of a window's first voxel everywhere, which tells where it lies."""
        ran.append(windows[:, 0, 0].tolist())
        return windows[:, :, :1].repeat(1, 1, 8)

    result = run_placed(sliding, first_voxel, image, found, line(20, (4, 15)))
    assert ran == ([[3.0], [9.0]] if batch == 1 else [[3.0, 9.0]])  # 14 voxels for 12
    expected = torch.full((20,), 0.5)
    expected[3:9] = (3 + 0.5e-3) / 1.001
    expected[9:11] = (3 + 9 + 0.5e-3) / 2.001
    expected[11:17] = (9 + 0.5e-3) / 1.001
    torch.testing.assert_close(result[0], expected)


def test_with_gaussian_weights_the_border_of_a_window_counts_as_much_as_what_was_found() -> None:
    sliding = SlidingWindowInferer([8, 8, 8], 4, overlap=0.0, mode="gaussian")
    wanted = torch.zeros(24, 24, 24, dtype=torch.bool)
    wanted[8:16, 8:16, 8:16] = True
    found = torch.zeros(1, 24, 24, 24)
    result = run_placed(sliding, torch.ones_like, torch.zeros(1, 24, 24, 24), found, wanted)
    assert result[0, 8, 8, 8].item() == pytest.approx(0.5)  # 0.001 each, MONAI's least weight
    assert result[0, 12, 12, 12].item() > 0.99
    assert result[0, 7].abs().max() == 0
    assert not found.any()


def test_nothing_wanted_is_what_was_found() -> None:
    found = torch.rand(3, 16, 16)
    sliding = SlidingWindowInferer([8, 8], 4)
    result = run_placed(sliding, torch.ones_like, torch.zeros(4, 16, 16), found, torch.zeros(16, 16, dtype=torch.bool))
    torch.testing.assert_close(result, found)
