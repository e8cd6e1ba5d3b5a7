"""Clusters, holes and groups of hand-counted size, at hand-computed limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.edema import RelabelEdemad, relabel_edema
from omnet_monai.postprocessing import (
    FillCoreHolesd,
    RefineRegionsd,
    RelabelSmallEnhancingd,
    RemoveSmallClustersd,
    RemoveUnsureClustersd,
    remove_small_clusters,
)
from omnet_monai.regions import BACKGROUND, EDEMA, ENHANCING, NECROSIS, classes_from_regions

# Probabilities of WT, TC, ET that stand for each class.
AS_CLASS = {
    BACKGROUND: (0.25, 0.0, 0.0),
    NECROSIS: (0.75, 0.75, 0.25),
    EDEMA: (0.75, 0.25, 0.0),
    ENHANCING: (0.75, 0.75, 0.75),
}
TALL = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))  # voxels of 1 x 1 x 2 mm


def make_probs(*sizes: int, length: int = 80) -> torch.Tensor:
    """Clusters of the given numbers of voxels along one line, one voxel apart, in all three regions."""
    probs = torch.full((3, 3, 3, length), 0.25)
    start = 0
    for size in sizes:
        probs[:, 1, 1, start : start + size] = 0.75
        start += size + 1
    return probs


def without_small_clusters(probs: torch.Tensor, *args: float, **kwargs: Any) -> torch.Tensor:
    cleared = probs.clone()
    remove_small_clusters(cleared, *args, **kwargs)
    return cleared


def kept(probs: torch.Tensor) -> int:
    return int((probs[0] > 0.5).sum())


@pytest.mark.parametrize(
    ("max_size", "max_share", "expected"),
    [(0, 0.1, 45), (3, 1.0, 43), (4, 1.0, 40), (100, 0.1, 40), (100, 0.05, 45), (100, 0.0625, 43), (100, 0.0, 45)],
    ids=["off", "3 voxels stay", "3 voxels go", "a tenth", "a twentieth", "a sixteenth", "no share"],
)
def test_a_cluster_goes_only_if_it_is_below_both_limits(max_size: float, max_share: float, expected: int) -> None:
    probs = make_probs(40, 2, 3)  # a tenth of the largest are 4 voxels, a twentieth 2, a sixteenth 2.5
    assert kept(without_small_clusters(probs, max_size, max_share)) == expected


def test_all_regions_are_cleared_and_what_stays_is_untouched() -> None:
    probs = make_probs(40, 2)
    cleared = without_small_clusters(probs, 10)
    assert (cleared[:, 1, 1, 41:43] == 0).all()
    cleared[:, 1, 1, 41:43] = probs[:, 1, 1, 41:43]
    assert torch.equal(cleared, probs)


@pytest.mark.parametrize(
    ("region", "expected"),
    [("WT", BACKGROUND), ("TC", EDEMA), ("ET", NECROSIS)],
    ids=["tumor goes", "core becomes edema", "enhancing becomes core"],
)
def test_a_small_cluster_of_a_region_becomes_what_is_around_it(region: str, expected: int) -> None:
    probs = make_probs(40, 3)
    cleared = without_small_clusters(probs, 10, region=region)
    assert (classes_from_regions(cleared)[0, 1, 1, 41:44] == expected).all()
    assert torch.equal(cleared[..., :41], probs[..., :41])


def test_clusters_of_a_region_are_those_inside_the_regions_around_it() -> None:
    probs = make_probs(40)
    probs[1:, 1, 1, 10:12] = 0.25  # without core, so ET has clusters of 10 and 28 there, or of 40 by itself
    probs[2, 1, 1, 10:12] = 0.75
    cleared = without_small_clusters(probs, 20, max_share=0.5, region="ET")
    assert (cleared[2, 1, 1, :10] == 0).all()
    assert (cleared[2, 1, 1, 12:40] == 0.75).all()


@pytest.mark.parametrize("step", [RemoveUnsureClustersd("pred", 0.9), RemoveSmallClustersd("pred", 1000)])
def test_probabilities_are_refined_in_place(step: RefineRegionsd) -> None:
    probs = make_probs(40, 3)
    assert step({"pred": probs})["pred"] is probs
    assert kept(probs) == (0 if isinstance(step, RemoveUnsureClustersd) else 40)


def test_another_region_is_refused() -> None:
    with pytest.raises(ValueError, match="region must be one of WT, TC, ET, got 'edema'"):
        RemoveSmallClustersd("pred", region="edema")


def test_clusters_that_touch_at_a_corner_are_one() -> None:
    probs = make_probs(40)
    probs[:, 0, 0, 40] = 0.75
    assert kept(without_small_clusters(probs, 100)) == 41
    probs[:, 0, 0, 40:42] = torch.tensor([0.25, 0.75])
    assert kept(without_small_clusters(probs, 100)) == 40


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["no tumor", "all tumor"])
def test_without_a_second_cluster_nothing_changes(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert torch.equal(without_small_clusters(probs, 1e9), probs)


@pytest.mark.parametrize(
    ("min_peak", "expected"), [(0.0, 72), (0.75, 32), (0.9, 32), (0.95, 2), (0.96, 0)], ids=lambda value: str(value)
)
def test_a_cluster_that_is_certain_nowhere_goes_whatever_its_size(min_peak: float, expected: int) -> None:
    probs = make_probs(40, 30, 2)
    probs[0, 1, 1, 45] = 0.95  # one voxel of the second cluster
    probs[0, 1, 1, 72] = 0.96  # and one of the third
    cleared = RemoveUnsureClustersd("pred", min_peak)({"pred": probs.clone()})["pred"]
    assert kept(cleared) == expected
    assert torch.equal(cleared[:, probs[0] < 0.5], probs[:, probs[0] < 0.5])
    assert (cleared[1:, probs[0] > 0.5] > 0.5).sum() == 2 * expected  # TC and ET go and stay with WT


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["no tumor", "all tumor"])
def test_what_is_certain_everywhere_stays(value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert torch.equal(RemoveUnsureClustersd("pred", 0.9)({"pred": probs.clone()})["pred"], probs)


def test_unsure_clusters_are_those_of_a_threshold_of_its_own() -> None:
    probs = make_probs(40)  # at 0.75 and, before and behind, 0.25
    assert kept(RemoveUnsureClustersd("pred", 0.7, threshold=0.2)({"pred": probs.clone()})["pred"]) == 40
    probs[0, 1, 1, 45:50] = 0.4  # part of no cluster at 0.5, a cluster at 0.3
    cleared = RemoveUnsureClustersd("pred", 0.7, threshold=0.3)({"pred": probs.clone()})["pred"]
    assert (cleared[0, 1, 1, 45:50] == 0).all()
    assert kept(cleared) == 40


@pytest.mark.parametrize("peak", [-0.1, 1.0])
def test_a_peak_that_no_probability_can_be_above_is_refused(peak: float) -> None:
    for name in ("min_peak", "incomplete_peak"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got {peak}"):
            RemoveUnsureClustersd("pred", **{name: peak})


@pytest.mark.parametrize(
    ("absent", "peaks", "expected"),
    [
        (None, (0.9, 0.7), 0),
        (3, (0.9, 0.7), 40),
        (0, (0.9, 0.8), 0),  # at 0.75 throughout: certain enough for neither
        (3, (0, 0.8), 40),
        (3, (0.9, None), 0),
        (3, (0.7, None), 40),
    ],
    ids=["complete", "without the last", "without the first", "switched off", "the same, unsure", "the same, sure"],
)
def test_less_certainty_is_asked_of_a_case_without_a_sequence(
    absent: int | None, peaks: tuple[float, float | None], expected: int
) -> None:
    probs = make_probs(40)
    image = torch.zeros(4, *probs.shape[1:])
    image.flatten(1)[range(4), range(4)] = torch.tensor([1.0, -1, 1, -1])  # one voxel of each is enough
    if absent is not None:
        image[absent] = 0
    clear = RemoveUnsureClustersd("pred", peaks[0], incomplete_peak=peaks[1])
    assert kept(clear({"pred": probs.clone(), "image": image})["pred"]) == expected


def test_the_limit_is_a_volume_in_cubic_millimeters() -> None:
    # Three voxels are 6 mm3, with axes that are not at right angles too.
    sheared = TALL.clone()
    sheared[0, 1] = 0.75
    for max_volume, expected, affine in ((6.0, 43, TALL), (6.1, 40, TALL), (6.1, 40, sheared)):
        data = {"pred": MetaTensor(make_probs(40, 3), affine=affine)}
        assert kept(RemoveSmallClustersd("pred", max_volume, max_share=1.0)(data)["pred"]) == expected


def test_the_limits_by_default_are_2000_mm3_and_a_tenth_of_the_largest() -> None:
    clear = RemoveSmallClustersd("pred")
    coarse = torch.diag(torch.tensor([10.0, 10.0, 5.0, 1.0]))  # a voxel has 500 mm3
    assert kept(clear({"pred": MetaTensor(make_probs(60, 4, 3), affine=coarse)})["pred"]) == 64  # a tenth are 6
    assert kept(clear({"pred": MetaTensor(make_probs(40, 4, 3), affine=TALL)})["pred"]) == 44  # 2000 mm3 are 1000


def along_a_line(**voxels: int) -> torch.Tensor:
    """Voxels of the named classes one after the other, shape ``(3, 1, 1, n)``."""
    classes = {"background": BACKGROUND, "necrosis": NECROSIS, "edema": EDEMA, "enhancing": ENHANCING}
    columns = [AS_CLASS[classes[name]] for name, number in voxels.items() for _ in range(number)]
    return torch.tensor(columns).T.reshape(3, 1, 1, -1).clone()


def count(probs: torch.Tensor) -> list[int]:
    """Numbers of voxels of background, necrosis, edema and enhancing tumor."""
    return torch.bincount(classes_from_regions(torch.as_tensor(probs)).flatten(), minlength=4).tolist()


def core_around(hole: tuple[slice, ...]) -> torch.Tensor:
    """A cube of 5 x 5 x 5 voxels of core inside 7 x 7 x 7 of whole tumor, edema in the hole."""
    probs = torch.full((3, 7, 7, 7), 0.25)
    probs[0] = 0.75
    probs[1, 1:6, 1:6, 1:6] = 0.75
    probs[1][hole] = 0.25
    return probs


def fill(probs: torch.Tensor) -> torch.Tensor:
    return FillCoreHolesd("pred")({"pred": probs.clone()})["pred"]


def test_a_hole_enclosed_by_the_core_becomes_core() -> None:
    hole = (slice(2, 5), slice(2, 5), slice(2, 5))
    probs = core_around(hole)
    assert count(probs) == [0, 125 - 27, 7**3 - 125 + 27, 0]
    filled = fill(probs)
    assert count(filled) == [0, 125, 7**3 - 125, 0]
    assert (filled[1][hole] == 1).all()
    filled[1][hole] = probs[1][hole]
    assert torch.equal(filled, probs)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("span", [(3, 7), (0, 7)], ids=["open to one side", "a tunnel"])
def test_a_hole_enclosed_within_planes_becomes_core(axis: int, span: tuple[int, int]) -> None:
    hole = [slice(3, 4)] * 3
    hole[axis] = slice(*span)
    probs = core_around(tuple(hole))
    assert count(fill(probs)) == [0, 125, 7**3 - 125, 0]


def test_a_hole_that_is_open_within_every_plane_stays() -> None:
    probs = core_around((slice(3, 7), slice(3, 7), slice(3, 7)))
    assert torch.equal(fill(probs), probs)


def test_a_hole_open_at_an_edge_alone_is_enclosed() -> None:
    # The center and, diagonal to it in each plane, voxels that lead out: they share an edge, not a side.
    probs = core_around((slice(3, 4), slice(3, 4), slice(3, 4)))
    for place in ((4, 4, 3), (4, 3, 4), (3, 4, 4)):
        probs[(1, *place)] = 0.25
    assert fill(probs)[1, 3, 3, 3] == 1


def test_in_two_dimensions_the_image_is_the_plane() -> None:
    probs = core_around((slice(2, 4), slice(2, 4), slice(3, 4)))[..., 3]
    assert count(fill(probs))[NECROSIS] == 25
    probs = core_around((slice(2, 7), slice(2, 4), slice(3, 4)))[..., 3]
    assert torch.equal(fill(probs), probs)


def test_a_hole_outside_the_whole_tumor_stays() -> None:
    probs = core_around((slice(2, 5), slice(2, 5), slice(2, 5)))
    probs[0, 2, 2, 2] = 0.25
    assert count(fill(probs)) == [1, 124, 7**3 - 125, 0]
    assert fill(probs)[1, 2, 2, 2] == probs[1, 2, 2, 2]


def test_core_outside_the_whole_tumor_encloses_nothing() -> None:
    probs = core_around((slice(3, 4), slice(3, 4), slice(3, 4)))
    probs[0, 1:3, 3, 3] = probs[0, 3, 1:3, 3] = 0.25  # a way out within each plane
    assert torch.equal(fill(probs), probs)


def test_enhancing_tumor_in_a_hole_of_the_core_is_left_to_its_own_probability() -> None:
    probs = core_around((slice(3, 4), slice(3, 4), slice(3, 4)))
    probs[2, 3, 3, 3] = 0.75
    assert count(fill(probs)) == [0, 124, 7**3 - 125, 1]


# Of 100 voxels of tumor 9 enhance and 4 are non-enhancing: below a tenth, below a twentieth, and 9 mm3.
SPARSE = {"background": 10, "necrosis": 4, "enhancing": 9, "edema": 87}


def two_groups(probs: torch.Tensor, brighter: int = 30) -> torch.Tensor:
    """Sequences in which the first voxels of edema are brighter than all others."""
    image = torch.zeros(4, *probs.shape[1:])
    positions = (classes_from_regions(probs)[0] == EDEMA).flatten().nonzero()[:brighter, 0]
    image[:, 0, 0, positions] = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None]
    return image


def make_sparse(**changes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A case as ``SPARSE`` whose brighter edema has some probability of core at two of its voxels, and its image."""
    probs = along_a_line(**{**SPARSE, **changes})
    image = two_groups(probs)
    bright = image[1].bool()
    probs[1][bright] = 0.2
    probs[1, 0, 0, bright[0, 0].nonzero()[:2, 0]] = 0.45  # a mean of (28 x 0.2 + 2 x 0.45) / 30 = 0.217
    probs[1][(probs[1] == 0.25) & ~bright] = 0.1
    return probs, image


def relabel(probs: torch.Tensor, image: torch.Tensor, **limits: float) -> torch.Tensor:
    return RelabelEdemad("pred", **limits)({"pred": probs.clone(), "image": image})["pred"]


def test_the_likelier_of_two_groups_of_edema_becomes_non_enhancing() -> None:
    probs, image = make_sparse()
    seen = image.clone()
    relabeled = relabel(probs, image)
    assert count(relabeled) == [10, 4 + 30, 57, 9]
    bright = image[1].bool()
    assert (relabeled[1][bright] == 1).all()
    assert (relabeled[2][bright] == 0).all()
    assert torch.equal(relabeled[:, ~bright], probs[:, ~bright])
    assert torch.equal(image, seen)


def test_the_group_is_chosen_by_probability_not_by_brightness() -> None:
    probs, image = make_sparse()
    assert torch.equal(relabel(probs, -image), relabel(probs, image))


def test_enhancing_probability_takes_from_the_likelihood() -> None:
    # Bright edema has TC - ET of 0.2 - 0.2 and 0.45 - 0.2, in the mean 0.017; dark edema 0.1 - 0.
    probs, image = make_sparse()
    probs[2][image[1].bool()] = 0.2
    assert count(relabel(probs, image)) == [10, 4 + 57, 30, 9]


def test_enhancing_probability_takes_no_more_than_there_is() -> None:
    # Ten voxels of bright edema have TC - ET far below 0 and count as 0: (18 x 0.2 + 2 x 0.45) / 30 is 0.15, above 0.1.
    probs, image = make_sparse()
    probs[2, 0, 0, image[1, 0, 0].nonzero()[10:20, 0]] = 0.95
    assert count(relabel(probs, image)) == [10, 4 + 30, 57, 9]


def test_groups_are_followed_until_they_settle() -> None:
    # Of intensities 0 to 9 the groups start at 4 and 9, which are {0-6}, {7-9}; by way of {0-5}, {6-9} they end there.
    probs = along_a_line(edema=10)
    probs[1, ..., 9] = 0.45
    image = torch.arange(10.0).expand(4, 1, 1, 10)
    assert count(relabel(probs, image)) == [0, 4, 6, 0]


def test_what_is_relabeled_does_not_enhance() -> None:
    # One voxel of the group is edema by TC alone, whatever ET says: raised TC must not make it enhance.
    probs, image = make_sparse()
    voxel = image[1, 0, 0].nonzero()[5, 0]
    probs[2, 0, 0, voxel] = 0.75
    assert count(probs) == [10, 4, 87, 9]
    assert count(relabel(probs, image)) == [10, 4 + 30, 57, 9]


def test_groups_do_not_depend_on_where_they_start() -> None:
    # Only two voxels lie above the mean likelihood; the groups are those of the intensities all the same.
    probs, image = make_sparse()
    probs[1][image[1].bool()] = 0.1
    probs[1, 0, 0, image[1, 0, 0].nonzero()[:2, 0]] = 0.45
    assert count(relabel(probs, image)) == [10, 4 + 30, 57, 9]


def test_the_same_case_gives_the_same_groups_whatever_was_drawn_before() -> None:
    probs, image = make_sparse()
    image = image + torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    first = relabel(probs, image)
    torch.rand(7)
    assert torch.equal(relabel(probs, image), first)
    assert not torch.equal(first, probs)


@pytest.mark.parametrize(
    "changes",
    [{"enhancing": 10, "edema": 86}, {"necrosis": 5, "edema": 86}],
    ids=["a tenth enhances", "a twentieth does not enhance"],
)
def test_edema_stays_where_a_part_of_the_core_is_as_large_as_its_limit(changes: dict[str, int]) -> None:
    probs, image = make_sparse(**changes)
    assert sum(count(probs)[1:]) == 100
    assert torch.equal(relabel(probs, image), probs)


def test_the_limits_are_arguments() -> None:
    probs, image = make_sparse()
    assert torch.equal(relabel(probs, image, max_enhancing_share=0.09), probs)
    assert torch.equal(relabel(probs, image, max_non_enhancing_share=0.04), probs)
    assert torch.equal(relabel(probs, image, max_enhancing_volume=9), probs)
    assert not torch.equal(relabel(probs, image, max_enhancing_share=0.091, max_non_enhancing_share=0.041), probs)


@pytest.mark.parametrize(("side", "fires"), [(4.8, True), (4.81, False)], ids=["995 mm3", "1001 mm3"])
def test_enhancing_tumor_below_1000_mm3_counts_as_small_by_default(side: float, fires: bool) -> None:
    probs, image = make_sparse()
    affine = torch.diag(torch.tensor([side, side, side, 1.0]))  # nine voxels enhance
    assert (count(relabel(MetaTensor(probs, affine=affine), image))[NECROSIS] == 34) == fires


@pytest.mark.parametrize(("max_volume", "fires"), [(18.0, False), (18.1, True)], ids=["18 mm3", "18.1 mm3"])
def test_the_volume_of_enhancing_tumor_is_in_cubic_millimeters(max_volume: float, fires: bool) -> None:
    probs, image = make_sparse()
    pred = MetaTensor(probs, affine=TALL)  # 9 voxels are 18 mm3
    relabeled = relabel(pred, MetaTensor(image, affine=TALL), max_enhancing_volume=max_volume)
    assert (count(relabeled)[NECROSIS] == 34) == fires
    assert isinstance(relabeled, MetaTensor)
    assert torch.equal(relabeled.affine, pred.affine)


@pytest.mark.parametrize(
    "case",
    [{"background": 20}, {"edema": 20}, {"enhancing": 20}, {"necrosis": 20}, {"edema": 1}],
    ids=["no tumor", "equal edema", "all enhancing", "all non-enhancing", "one voxel"],
)
def test_a_case_without_two_groups_of_edema_stays(case: dict[str, int]) -> None:
    probs = along_a_line(**case)
    image = torch.randn(4, *probs.shape[1:], generator=torch.Generator().manual_seed(0))
    assert torch.equal(relabel(probs, image), probs)


def test_edema_of_one_intensity_is_one_group() -> None:
    probs, image = make_sparse()
    assert torch.equal(relabel(probs, torch.zeros_like(image)), probs)


def test_an_image_on_another_grid_is_refused_by_the_name_of_its_case() -> None:
    probs, image = make_sparse()
    image = MetaTensor(image[..., 1:], meta={"case": "patient_7"})
    with pytest.raises(
        ValueError, match=r"case patient_7: .* share a spatial shape, got \(1, 1, 109\) and \(1, 1, 110\)"
    ):
        relabel_edema(probs, image)


@pytest.mark.parametrize(("max_volume", "expected"), [(0, 3), (6.0, 3), (6.1, 0)], ids=["off", "6 mm3", "6.1 mm3"])
def test_enhancing_tumor_below_a_volume_becomes_non_enhancing(max_volume: float, expected: int) -> None:
    probs = MetaTensor(along_a_line(background=2, necrosis=4, enhancing=3, edema=5), affine=TALL)  # 6 mm3 enhance
    probs[2, 0, 0, 0] = 0.75  # outside the tumor: no part of it
    relabeled = RelabelSmallEnhancingd("pred", max_volume)({"pred": probs.clone()})["pred"]
    assert count(relabeled) == [2, 4 + 3 - expected, 5, expected]
    assert torch.equal(relabeled[:2], probs[:2])


@pytest.mark.parametrize(("height", "expected"), [(66.6, 0), (66.7, 3)], ids=["199.8 mm3", "200.1 mm3"])
def test_enhancing_tumor_below_200_mm3_counts_as_small_by_default(height: float, expected: int) -> None:
    affine = torch.diag(torch.tensor([1.0, 1.0, height, 1.0]))
    probs = MetaTensor(along_a_line(necrosis=4, enhancing=3, edema=5), affine=affine)
    assert count(RelabelSmallEnhancingd("pred")({"pred": probs.clone()})["pred"])[3] == expected


@pytest.mark.parametrize("step", [RelabelSmallEnhancingd("pred", 1e9), FillCoreHolesd("pred")], ids=["ET", "holes"])
@pytest.mark.parametrize("value", [0.0, 1.0], ids=["no tumor", "all tumor"])
def test_empty_and_full_masks_keep_whole_tumor_and_core(step: RelabelSmallEnhancingd, value: float) -> None:
    probs = torch.full((3, 4, 4, 4), value)
    assert torch.equal(step({"pred": probs.clone()})["pred"][:2], probs[:2])


@pytest.mark.parametrize("step", [FillCoreHolesd, RelabelEdemad], ids=["holes", "edema"])
def test_a_step_that_is_switched_off_does_nothing_and_a_text_is_no_switch(step: type) -> None:
    probs, image = make_sparse()
    assert torch.equal(step("pred", enabled=False)({"pred": probs.clone(), "image": image})["pred"], probs)
    with pytest.raises(ValueError, match=r"enabled must be True or False, capitalized .*, got 'false'"):
        step("pred", enabled="false")
