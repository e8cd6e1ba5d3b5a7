"""Labels, schemes and regions, by hand and there and back."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.regions import (
    CLASS_NAMES,
    REGIONS,
    SCHEMES,
    TASKS,
    classes_from_codes,
    classes_from_regions,
    codes_from_classes,
    regions_from_classes,
)

# Codes of a file, the inner classes they stand for (0 background, 1 NCR/NET, 2 edema, 3 enhancing), and the codes
# written for those classes.
BY_SCHEME = {
    "brats2015": ([0, 1, 2, 3, 4], [0, 1, 2, 1, 3], [0, 1, 2, 1, 4]),
    "brats2017": ([0, 1, 2, 4], [0, 1, 2, 3], [0, 1, 2, 4]),
    "brats2023": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0]),
    "msd": ([0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3]),
}


def volume(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


def probabilities(whole: float, core: float, enhancing: float) -> torch.Tensor:
    return torch.tensor([whole, core, enhancing]).reshape(3, 1, 1, 1)


def test_every_scheme_of_the_table_is_spelled_out_here() -> None:
    assert list(BY_SCHEME) == list(SCHEMES)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=["uint8", "int64", "float32"])
@pytest.mark.parametrize("scheme", BY_SCHEME, ids=str)
def test_codes_become_the_classes_they_stand_for(scheme: str, dtype: torch.dtype) -> None:
    codes, classes, _ = BY_SCHEME[scheme]
    found = classes_from_codes(volume(*codes).to(dtype), scheme)
    assert found.dtype == torch.uint8
    assert found.shape == (1, len(codes), 1, 1)
    assert found.flatten().tolist() == classes


@pytest.mark.parametrize("scheme", BY_SCHEME, ids=str)
def test_classes_become_the_first_code_of_their_scheme(scheme: str) -> None:
    _, classes, written = BY_SCHEME[scheme]
    codes = codes_from_classes(volume(*classes), scheme)
    assert codes.dtype == torch.uint8
    assert codes.flatten().tolist() == written


@pytest.mark.parametrize("scheme", BY_SCHEME, ids=str)
def test_classes_survive_the_way_to_codes_and_back(scheme: str) -> None:
    label = torch.randint(4, (1, 5, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(classes_from_codes(codes_from_classes(label, scheme), scheme), label)


def test_necrosis_and_non_enhancing_tumor_of_2015_are_one_class() -> None:
    assert classes_from_codes(volume(1, 3), "brats2015").flatten().tolist() == [1, 1]


def test_a_resection_cavity_of_2024_is_background() -> None:
    assert classes_from_codes(volume(4, 3), "brats2023").flatten().tolist() == [0, 3]


def test_codes_are_written_without_a_gap_by_default() -> None:
    assert codes_from_classes(volume(0, 1, 2, 3)).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("enhancing", [3, 4], ids=["code 3", "code 4"])
def test_without_a_scheme_both_3_and_4_are_enhancing(enhancing: int) -> None:
    assert classes_from_codes(volume(0, 1, 2, enhancing)).flatten().tolist() == [0, 1, 2, 3]


def test_without_a_scheme_3_and_4_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="must not hold both 3 and 4: name its scheme"):
        classes_from_codes(volume(0, 3, 4))


@pytest.mark.parametrize(
    ("scheme", "codes", "message"),
    [
        ("brats2017", (0, 3), r"codes of brats2017 must be among \[0, 1, 2, 4\], got \[3.0\]"),
        ("msd", (0, 4, 9), r"codes of msd must be among \[0, 1, 2, 3\], got \[4.0, 9.0\]"),
        ("brats2023", (0, -1), r"got \[-1.0\]"),
        ("brats2015", (0, 0.5), r"got \[0.5\]"),
        ("brats2015", (0, float("nan")), r"got \[nan\]"),
        (None, (0, 5), r"codes of no scheme must be among \[0, 1, 2, 3, 4\], got \[5.0\]"),
    ],
    ids=["3 in 2017", "4 in MSD", "negative", "fraction", "NaN", "5 without a scheme"],
)
def test_codes_that_the_scheme_does_not_know_are_refused(scheme: str | None, codes: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classes_from_codes(volume(*codes), scheme)


@pytest.mark.parametrize("convert", [classes_from_codes, codes_from_classes], ids=["reading", "writing"])
def test_an_unknown_scheme_is_refused_with_those_there_are(convert) -> None:
    with pytest.raises(ValueError, match="must be one of brats2015, brats2017, brats2023, msd, got 'brats2012'"):
        convert(volume(0), "brats2012")


def test_regions_are_nested_sums_of_classes() -> None:
    masks = regions_from_classes(volume(0, 1, 2, 3))
    assert masks.dtype == torch.bool
    assert masks.shape == (3, 4, 1, 1)
    assert masks.flatten(1).int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("cls", range(4), ids=CLASS_NAMES)
def test_a_volume_of_one_class_fills_each_region_or_leaves_it_empty(cls: int) -> None:
    masks = regions_from_classes(torch.full((1, 3, 3, 3), cls))
    for mask, classes in zip(masks, REGIONS.values(), strict=True):
        assert mask.all() if cls in classes else not mask.any()


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ((0.2, 0.2, 0.2), 0),
        ((0.9, 0.2, 0.2), 2),
        ((0.9, 0.9, 0.2), 1),
        ((0.9, 0.9, 0.9), 3),
        ((0.2, 0.9, 0.9), 0),
        ((0.9, 0.2, 0.9), 2),
        ((0.5, 0.9, 0.9), 0),
        ((0.9, 0.5, 0.9), 2),
        ((0.9, 0.9, 0.5), 1),
    ],
    ids=[
        "nothing",
        "WT",
        "WT TC",
        "WT TC ET",
        "core outside the tumor",
        "enhancing outside the core",
        "WT at the threshold",
        "TC at the threshold",
        "ET at the threshold",
    ],
)
def test_fusion_is_nested_and_a_region_must_exceed_the_threshold(probs: tuple, expected: int) -> None:
    label = classes_from_regions(probabilities(*probs))
    assert label.dtype == torch.uint8
    assert label.shape == (1, 1, 1, 1)
    assert label.item() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (1.0, 3)], ids=["empty", "full"])
def test_certain_probabilities_give_an_empty_or_a_full_label(value: float, expected: int, dtype: torch.dtype) -> None:
    assert (classes_from_regions(torch.full((3, 2, 3, 4), value, dtype=dtype)) == expected).all()


def test_fused_regions_are_nested_whatever_the_probabilities() -> None:
    probs = torch.rand((3, 9, 8, 7), generator=torch.Generator().manual_seed(1))
    whole, core, enhancing = regions_from_classes(classes_from_regions(probs))
    assert torch.equal(whole, probs[0] > 0.5)
    assert not (core & ~whole).any()
    assert not (enhancing & ~core).any()


def test_classes_survive_the_way_to_regions_and_back() -> None:
    label = torch.randint(4, (1, 5, 4, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    assert torch.equal(classes_from_regions(regions_from_classes(label).float()), label)


def test_four_channels_are_no_regions() -> None:
    with pytest.raises(ValueError, match=r"must have 3 channels, got shape \(4, 2, 2, 2\)"):
        classes_from_regions(torch.zeros(4, 2, 2, 2))


@pytest.mark.parametrize(
    ("convert", "channels"),
    [(classes_from_codes, 1), (codes_from_classes, 1), (regions_from_classes, 1), (classes_from_regions, 3)],
    ids=["classes_from_codes", "codes_from_classes", "regions_from_classes", "classes_from_regions"],
)
def test_affine_and_meta_survive_and_the_input_is_left_alone(convert, channels: int) -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    values = torch.ones(channels, 2, 2, 2)
    image = MetaTensor(values.clone(), affine=affine, meta={"filename_or_obj": "case.nii.gz"})
    out = convert(image)
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine)
    assert out.meta["filename_or_obj"] == "case.nii.gz"
    assert torch.equal(out.as_tensor(), convert(values))
    assert torch.equal(image.as_tensor(), values)


@pytest.mark.parametrize(
    ("task", "expected"),
    [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [0, 0, 0, 1])],
    ids=["coarse", "refined", "precise"],
)
def test_targets_of_the_tasks(task: int, expected: list[int]) -> None:
    target = TASKS[task].target(torch.tensor([0, 1, 2, 3], dtype=torch.uint8))
    assert target.dtype == torch.int64
    assert target.tolist() == expected


def test_tasks_go_from_the_brain_inwards_and_yield_the_regions_in_order() -> None:
    assert [task.region for task in TASKS] == list(REGIONS) == ["WT", "TC", "ET"]
    assert [task.sampled_in for task in TASKS] == [None, "WT", "TC"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_summed_channels_of_a_task_are_its_region(task) -> None:
    label = torch.tensor([[0, 1, 2, 3]])
    one_hot = torch.nn.functional.one_hot(task.target(label)[0], 5)
    mask = regions_from_classes(label)[list(REGIONS).index(task.region)]
    assert torch.equal(one_hot[:, task.channels_of(task.region)].sum(1).bool(), mask)
