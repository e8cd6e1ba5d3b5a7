"""Metrics against numbers derived by hand and against slow computations on sets of voxels that share no code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import dist, sqrt

import numpy as np
import pytest
import torch

from omnet_monai.metrics import (
    METRICS,
    dice,
    false_volume,
    hausdorff95,
    lesion_wise,
    score_regions,
    sensitivity,
    specificity,
)

SHAPE = (20, 20, 20)
UNIT = (1.0, 1.0, 1.0)
DIAGONAL = sqrt(3 * 20**2)
Voxel = tuple[int, ...]


def mask(*boxes: Sequence[tuple[int, int]], shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Fill boxes, each given as its start and stop along every axis."""
    result = torch.zeros(shape, dtype=torch.bool)
    for box in boxes:
        result[tuple(slice(*span) for span in box)] = True
    return result


EMPTY, FULL = mask(), ~mask()
ONE = mask([(5, 6), (5, 6), (5, 6)])
CUBE = mask([(5, 9), (5, 9), (5, 9)])  # 64 voxels: large enough to count as a lesion
SHIFTED = mask([(7, 11), (5, 9), (5, 9)])  # half of it lies in CUBE
BESIDE = mask([(9, 13), (5, 9), (5, 9)])  # touches CUBE's face
DIAGONAL_CONTACT = mask([(9, 13), (9, 13), (9, 13)])  # touches CUBE's corner

# Dilating thrice reaches three voxels, so two lesions are one if at most six voxels lie between them.
NEAR = mask([(1, 5), (1, 5), (1, 5)], [(11, 15), (1, 5), (1, 5)])
APART = mask([(1, 5), (1, 5), (1, 5)], [(12, 16), (1, 5), (1, 5)])
FIRST_OF_TWO = mask([(1, 5), (1, 5), (1, 5)])
SPECK = mask([(1, 5), (1, 5), (1, 4)])  # 48 voxels: dropped
FAR = mask([(14, 18), (14, 18), (14, 18)])
ON_SPECK_AND_FAR = SPECK | FAR


def neighborhood(contact: int) -> list[Voxel]:
    """Offsets to the neighbors that differ in at most so many coordinates: 1, 2 or 3 for 6, 18 or 26 neighbors."""
    return [step for step in product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, step)) <= contact]


def shift(voxel: Voxel, step: Voxel) -> Voxel:
    return tuple(a + b for a, b in zip(voxel, step, strict=True))


def voxels(image: torch.Tensor) -> set[Voxel]:
    return {tuple(voxel) for voxel in image.nonzero().tolist()}


def dilated(points: set[Voxel], times: int = 3) -> set[Voxel]:
    for _ in range(times):
        points = points | {shift(point, step) for point in points for step in neighborhood(2)}
    return points


def components(points: set[Voxel]) -> list[set[Voxel]]:
    rest, found = set(points), []
    while rest:
        component, frontier = set(), [rest.pop()]
        while frontier:
            point = frontier.pop()
            component.add(point)
            near = {shift(point, step) for step in neighborhood(3)} & rest
            rest -= near
            frontier += near
        found.append(component)
    return found


def slow_hausdorff95(a: set[Voxel], b: set[Voxel], spacing: Sequence[float]) -> float:
    def surface(points: set[Voxel]) -> list[list[float]]:
        inside = [p for p in points if all(shift(p, step) in points for step in neighborhood(1))]
        return [[x * size for x, size in zip(p, spacing, strict=True)] for p in points - set(inside)]

    first, second = surface(a), surface(b)
    there = [min(dist(p, q) for q in second) for p in first]
    back = [min(dist(p, q) for q in first) for p in second]
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))


def slow_lesion_wise(pred: torch.Tensor, truth: torch.Tensor, spacing: Sequence[float]) -> tuple[float, float]:
    found, true = components(voxels(pred)), voxels(truth)
    lesions = [joined & true for joined in components(dilated(true))]
    scores, hit = [], []
    for lesion in lesions:
        matches = [component for component in found if component & dilated(lesion)]
        hit += matches
        if len(lesion) * float(np.prod(spacing)) > 50:
            union = set().union(*matches)
            overlap = 2 * len(union & lesion) / (len(union) + len(lesion))
            scores.append((overlap, slow_hausdorff95(union, lesion, spacing) if matches else 374.0))
    scores += [(0.0, 374.0) for component in found if component not in hit]
    if not scores:
        return 1.0, 0.0
    return sum(s[0] for s in scores) / len(scores), sum(s[1] for s in scores) / len(scores)


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        # Dice, HD95, sensitivity, specificity by hand.
        (EMPTY, EMPTY, (1, 0, 1, 1)),
        (FULL, EMPTY, (0, DIAGONAL, 0, 0)),
        (EMPTY, FULL, (0, DIAGONAL, 0, 0)),
        (FULL, FULL, (1, 0, 1, 1)),
        (ONE, ONE, (1, 0, 1, 1)),
        (ONE, mask([(5, 6), (5, 6), (8, 9)]), (0, 3, 0, 7998 / 7999)),
        (EMPTY, ONE, (0, DIAGONAL, 0, 1)),
        (ONE, EMPTY, (0, DIAGONAL, 0, 7999 / 8000)),
        (SHIFTED, CUBE, (0.5, 2, 0.5, (8000 - 64 - 32) / (8000 - 64))),
        (BESIDE, CUBE, (0, 4, 0, (8000 - 128) / (8000 - 64))),
        # Of 56 surface voxels the one at the far corner is (4, 4, 4) from the touching corner, three are (4, 4, 3).
        (DIAGONAL_CONTACT, CUBE, (0, sqrt(41), 0, (8000 - 128) / (8000 - 64))),
    ],
    ids=[
        "both empty",
        "full/empty",
        "empty/full",
        "both full",
        "one voxel",
        "two voxels 3 mm apart",
        "missed voxel",
        "false voxel",
        "half covered",
        "touching",
        "touching at a corner",
    ],
)
def test_scores_equal_those_derived_by_hand(
    pred: torch.Tensor, truth: torch.Tensor, expected: tuple[float, ...]
) -> None:
    got = dice(pred, truth), hausdorff95(pred, truth, UNIT), sensitivity(pred, truth), specificity(pred, truth)
    assert got == pytest.approx(expected, abs=1e-6)


def test_the_diagonal_of_a_brats_image_is_the_challenges_number() -> None:
    empty = torch.zeros(240, 240, 155, dtype=torch.bool)
    one = empty.clone()
    one[120, 120, 77] = True
    assert hausdorff95(one, empty, UNIT) == pytest.approx(373.13, abs=0.005)


@pytest.mark.parametrize(("axis", "size"), [(0, 0.5), (1, 2.0), (2, 6.5)], ids=["0.5 mm", "2 mm", "6.5 mm"])
def test_distances_are_in_mm_along_each_axis(axis: int, size: float) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = size
    moved = torch.roll(ONE, 3, dims=axis)
    assert hausdorff95(moved, ONE, spacing) == pytest.approx(3 * size)
    assert hausdorff95(EMPTY, ONE, spacing) == pytest.approx(20 * sqrt(2 + size**2))


def test_a_mask_of_the_first_region_is_no_background() -> None:
    scores = score_regions(torch.stack([SHIFTED, ONE, EMPTY]), torch.stack([CUBE, ONE, EMPTY]), UNIT)
    assert list(scores) == [f"{metric}_{region}" for metric in METRICS for region in ("WT", "TC", "ET")]
    assert [scores[f"dice_{region}"] for region in ("WT", "TC", "ET")] == [0.5, 1.0, 1.0]
    assert [scores[f"hd95_{region}"] for region in ("WT", "TC", "ET")] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("pred", "truth", "voxels"),
    [
        (EMPTY, EMPTY, 0),
        (EMPTY, CUBE, 0),
        (CUBE, EMPTY, 64),
        (SHIFTED, CUBE, 0),  # half of it lies outside, and all hangs together
        (ONE | FAR, CUBE, 64),
        (NEAR | FAR, FAR, 128),
    ],
    ids=["nothing", "missed", "nothing to find", "drawn too wide", "one false", "two false"],
)
def test_false_volume_is_that_of_components_away_from_any_lesion(
    pred: torch.Tensor, truth: torch.Tensor, voxels: int
) -> None:
    assert false_volume(pred, truth, 1.0) == pytest.approx(voxels / 1000)
    scores = score_regions(torch.stack([pred] * 3), torch.stack([truth] * 3), [2.0, 0.5, 3.0])
    assert scores["false_ml_TC"] == pytest.approx(3 * voxels / 1000)
    oblique = score_regions(torch.stack([pred] * 3), torch.stack([truth] * 3), [2.0, 0.5, 3.0], voxel=2.5)
    assert oblique["false_ml_TC"] == pytest.approx(2.5 * voxels / 1000)


def test_a_component_that_meets_a_lesion_at_a_corner_alone_is_false() -> None:
    corner = torch.zeros_like(EMPTY)
    corner[tuple(CUBE.nonzero().amax(0) + 1)] = True
    assert false_volume(corner, CUBE, 1.0) == pytest.approx(0.001)
    assert false_volume(corner | CUBE, CUBE, 1.0) == 0  # joined by it, one component with what was found


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share a shape, got \(3, 20, 20, 20\) and \(3, 20, 20, 19\)"):
        score_regions(torch.stack([EMPTY] * 3), torch.stack([EMPTY] * 3)[..., 1:], UNIT)


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        (EMPTY, EMPTY, (1, 0)),
        (EMPTY, FULL, (0, 374)),
        (FULL, EMPTY, (0, 374)),
        (EMPTY, CUBE, (0, 374)),
        (ONE, EMPTY, (0, 374)),  # a false alarm counts however small it is
        (CUBE, CUBE, (1, 0)),
        (EMPTY, ONE, (1, 0)),  # a lesion of 1 mm3 is not scored
        (SHIFTED, CUBE, (0.5, 2)),
        (BESIDE, CUBE, (0, 4)),  # matched, although they share no voxel
        (FIRST_OF_TWO, NEAR, (2 * 64 / (64 + 128), 10)),  # one lesion, half of it found; 10 mm from its far half
        (FIRST_OF_TWO, APART, (0.5, 187)),  # one of two lesions
        (SPECK, SPECK | FAR, (0, 374)),  # neither hit nor false alarm, and the other one missed
        (ON_SPECK_AND_FAR, FAR, (0.5, 187)),  # without the dropped lesion it is a false alarm
        (ON_SPECK_AND_FAR, ON_SPECK_AND_FAR, (1, 0)),
    ],
    ids=[
        "both empty",
        "empty/full",
        "full/empty",
        "missed",
        "false voxel",
        "perfect",
        "missed but dropped",
        "half covered",
        "touching",
        "two merged by dilation",
        "two apart",
        "only a dropped lesion",
        "false alarm",
        "dropped and kept",
    ],
)
def test_lesion_wise_scores_equal_those_derived_by_hand(
    pred: torch.Tensor, truth: torch.Tensor, expected: tuple[float, float]
) -> None:
    assert lesion_wise(pred, truth, UNIT) == pytest.approx(expected, abs=1e-5)
    assert slow_lesion_wise(pred, truth, UNIT) == pytest.approx(expected, abs=1e-5)


def test_lesion_wise_distances_are_in_mm_along_each_axis() -> None:
    assert lesion_wise(SHIFTED, CUBE, (2.5, 1.0, 1.0)) == pytest.approx((0.5, 5))
    assert lesion_wise(SHIFTED, CUBE, (1.0, 2.5, 1.0)) == pytest.approx((0.5, 2))


def test_a_contact_at_a_corner_makes_one_component() -> None:
    # The third cube is out of the lesion's reach: by itself it is a false alarm, in a chain it belongs to the hit.
    third = mask([(13, 17), (13, 17), (13, 17)])
    assert lesion_wise(CUBE | DIAGONAL_CONTACT | third, CUBE, UNIT)[0] == pytest.approx(2 * 64 / (3 * 64 + 64))
    assert lesion_wise(CUBE | third, CUBE, UNIT) == (0.5, 187)


def test_a_corner_of_the_18_neighbors_is_not_reached() -> None:
    # Three dilations along the diagonal of the cube need 6 steps of two coordinates: (3, 3, 3) is out of reach.
    truth = mask([(5, 9), (5, 9), (5, 9)])
    inside, outside = mask([(11, 12), (11, 12), (8, 9)]), mask([(11, 12), (11, 12), (11, 12)])
    assert lesion_wise(inside, truth, UNIT)[1] < 374
    assert lesion_wise(outside, truth, UNIT) == (0, 374)


def test_a_lesion_of_exactly_50_mm3_is_dropped_and_volume_counts_spacing() -> None:
    fifty = mask([(5, 10), (5, 10), (5, 7)])
    assert lesion_wise(EMPTY, fifty, UNIT) == (1, 0)
    assert lesion_wise(EMPTY, fifty, (1, 1, 1.0000001)) == (1, 0)  # as the affine of an oblique image has it
    assert lesion_wise(EMPTY, fifty, (1, 1, 1.02)) == (0, 374)
    assert lesion_wise(EMPTY, CUBE, (0.9, 0.9, 0.9)) == (1, 0)  # 64 voxels, 46.7 mm3


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_score_as_slow_computations_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = (16, 14, 12), tuple(rng.choice([0.7, 1.0, 2.5], size=3).tolist())

    def blobs(number: int) -> torch.Tensor:
        starts, sizes = rng.integers(0, shape, size=(number, 3)), rng.integers(1, 6, size=(number, 3))
        return mask(*(list(zip(a, a + n, strict=True)) for a, n in zip(starts, sizes, strict=True)), shape=shape)

    truth, pred = blobs(3), blobs(4)
    assert hausdorff95(pred, truth, spacing) == pytest.approx(
        slow_hausdorff95(voxels(pred), voxels(truth), spacing), rel=1e-5
    )
    assert lesion_wise(pred, truth, spacing) == pytest.approx(slow_lesion_wise(pred, truth, spacing), rel=1e-5)


def test_scores_depend_on_no_axis_order() -> None:
    rng = np.random.default_rng(0)
    pred, truth = (torch.from_numpy(rng.random((9, 8, 7)) > 0.8) for _ in range(2))
    spacing = (1.0, 2.0, 3.0)
    turned = [spacing[axis] for axis in (2, 0, 1)]
    for metric in (hausdorff95, lesion_wise):
        expected = metric(pred, truth, spacing)
        assert metric(pred.permute(2, 0, 1), truth.permute(2, 0, 1), turned) == pytest.approx(expected, rel=1e-5)
