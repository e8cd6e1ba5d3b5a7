"""Volumes whose voxels hold their own index, so that a patch tells where it was cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, SaveImaged, Spacingd

from omnet_monai.loading import LoadCased
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS, REGIONS, SCHEMES
from omnet_monai.transforms import (
    InvertToLabelsd,
    LabelMapWriter,
    LabelsToRegionsd,
    MoveThresholdsd,
    RandCropByTaskd,
    RegionsToLabelsd,
    case_name,
    nonzero,
    written_here,
)

SHAPE = (24, 20, 12)
SIZE = (8, 6, 4)
CENTER = (4, 3, 2)  # of a patch: the voxel that it was cut around
CORE = (14, 12, 5)
AROUND = (10, 9, 6)
AFFINE = np.array([[1.0, 0, 0, 3], [0, 1.5, 0, 239], [0, 0, 2.0, -7], [0, 0, 0, 1]])
Place = tuple[int, int, int]


def make_case(tumor: dict[Place, int], shape: Sequence[int] = SHAPE) -> dict[str, torch.Tensor]:
    """Make an image whose every voxel holds its flat index plus one, and a label with single voxels of tumor."""
    index = torch.arange(1.0, 1 + np.prod(shape)).reshape(1, *shape)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for place, cls in tumor.items():
        label[0][place] = cls
    return {"image": index.repeat(4, *[1] * len(shape)), "label": label}


def origin(patch: dict[Any, Any], shape: Sequence[int] = SHAPE) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(patch["image"].flatten()[0]) - 1, shape))


def cut(
    case: dict[str, torch.Tensor],
    seed: int = 0,
    num_samples: int | Sequence[int] = 2,
    size: Sequence[int] = SIZE,
) -> list[Any]:
    return RandCropByTaskd(size, num_samples).set_random_state(seed)(case)


def test_a_margin_is_the_tissue_around_the_very_patch_that_is_cut_without_it() -> None:
    case = make_case({CORE: NECROSIS, AROUND: EDEMA})
    plain, wide = (RandCropByTaskd(SIZE, 20, margin=margin).set_random_state(0)(case) for margin in (0.0, 0.25))
    extra = [int(side * 0.25) for side in SIZE]
    middle = (slice(None), *(slice(e, e + side) for e, side in zip(extra, SIZE, strict=True)))
    for patch, larger in zip(plain, wide, strict=True):
        assert larger["image"].shape[1:] == tuple(side + 2 * e for side, e in zip(SIZE, extra, strict=True))
        assert torch.equal(larger["image"][middle], patch["image"])
        assert torch.equal(larger["label"][middle], patch["label"])
        assert larger["task"] == patch["task"]


def test_a_margin_is_zero_where_the_volume_ends() -> None:
    case = {"image": torch.ones(4, *SIZE), "label": torch.ones(1, *SIZE, dtype=torch.uint8)}
    (patch, *_) = RandCropByTaskd(SIZE, 1, margin=0.25)(case)
    assert patch["image"].sum() == 4 * np.prod(SIZE)
    assert patch["label"].sum() == np.prod(SIZE)
    assert patch["label"].dtype == torch.uint8
    extra = [int(side * 0.25) for side in SIZE]
    assert patch["image"][(slice(None), *extra)].all()
    assert not patch["image"][:, extra[0] - 1].any()


def test_each_task_has_its_patches_centered_in_its_region() -> None:
    case = make_case({CORE: NECROSIS, AROUND: EDEMA})
    brain = torch.zeros(SHAPE, dtype=torch.bool)
    brain[6:9, 4:7, 3:6] = True
    case["image"] *= brain
    patches = cut(case, num_samples=30)
    assert [patch["task"] for patch in patches] == [0] * 30 + [1] * 30 + [2] * 30
    for patch in patches:
        assert patch["image"].shape == (4, *SIZE)
        assert patch["label"].shape == (1, *SIZE)
    assert all(patch["image"][(0, *CENTER)] for patch in patches[:30])
    assert {int(patch["label"][(0, *CENTER)]) for patch in patches[30:60]} == {NECROSIS, EDEMA}
    assert {int(patch["label"][(0, *CENTER)]) for patch in patches[60:]} == {NECROSIS}


def test_each_task_may_have_its_own_number_of_patches() -> None:
    case = make_case({CORE: NECROSIS, AROUND: EDEMA})
    assert [patch["task"] for patch in cut(case, num_samples=(4, 1, 2))] == [0, 0, 0, 0, 1, 2, 2]
    coreless = make_case({AROUND: EDEMA})  # as many patches, though two of them are the refined task's
    assert [patch["task"] for patch in cut(coreless, num_samples=(4, 1, 2))] == [0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="length 3, got 2"):
        cut(case, num_samples=(4, 1))


def test_patches_are_cut_for_the_named_tasks_alone() -> None:
    case = make_case({CORE: NECROSIS, AROUND: EDEMA})
    patches = RandCropByTaskd(SIZE, (1, 3, 2), tasks=["refined"])(case)
    assert [patch["task"] for patch in patches] == [1] * 3
    patches = RandCropByTaskd(SIZE, 2, tasks=["coarse", "precise"])(case)
    assert [patch["task"] for patch in patches] == [0, 0, 2, 2]
    # Without core they are what the task before would have got.
    patches = RandCropByTaskd(SIZE, 2, tasks=["precise"])(make_case({AROUND: EDEMA}))
    assert [patch["task"] for patch in patches] == [1, 1]


def test_every_voxel_of_the_brain_can_be_a_center() -> None:
    case = make_case({})
    brain = torch.zeros(4, *SHAPE)
    brain[0, 12, 9, 6] = -1  # a voxel that one sequence alone shows, and as a negative number
    brain[3, 6, 9, 6] = 1
    case["image"] = brain
    centers = {tuple(patch["image"][(slice(None), *CENTER)].tolist()) for patch in cut(case, num_samples=10)}
    assert centers == {(-1, 0, 0, 0), (0, 0, 0, 1)}


@pytest.mark.parametrize(
    ("place", "start"),
    [
        ((10, 9, 6), (6, 6, 4)),
        ((4, 3, 2), (0, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((23, 19, 11), (16, 14, 8)),
        ((1, 19, 6), (0, 14, 4)),
    ],
    ids=["away", "just fits", "near corner", "far corner", "two borders"],
)
def test_a_patch_is_centered_and_near_a_border_shifted_inwards(place: Place, start: Place) -> None:
    patches = cut(make_case({place: ENHANCING}))
    assert [origin(patch) for patch in patches[2:]] == [start] * 4


def test_a_patch_is_what_stands_in_the_volume_there() -> None:
    case = make_case({CORE: ENHANCING, AROUND: EDEMA})
    for patch in cut(case):
        window = (slice(None), *(slice(start, start + side) for start, side in zip(origin(patch), SIZE, strict=True)))
        torch.testing.assert_close(patch["image"], case["image"][window])
        torch.testing.assert_close(patch["label"], case["label"][window])


@pytest.mark.parametrize(
    ("tumor", "tasks"),
    [
        ({}, [0, 0, 0, 0, 0, 0]),
        ({AROUND: EDEMA}, [0, 0, 1, 1, 1, 1]),
        ({AROUND: NECROSIS}, [0, 0, 1, 1, 2, 2]),
        ({AROUND: ENHANCING}, [0, 0, 1, 1, 2, 2]),
    ],
    ids=["no tumor", "no core", "no enhancing part", "enhancing part only"],
)
def test_a_task_without_its_region_gives_its_patches_to_the_one_before(
    tumor: dict[Place, int], tasks: list[int]
) -> None:
    patches = cut(make_case(tumor))
    assert [patch["task"] for patch in patches] == tasks
    assert all(patch["label"][(0, *CENTER)] for patch in patches if patch["task"])


def test_a_label_full_of_tumor_and_an_empty_image_are_cut_too() -> None:
    full = make_case({})
    full["label"].fill_(ENHANCING)
    assert [patch["task"] for patch in cut(full)] == [0, 0, 1, 1, 2, 2]
    empty = {"image": torch.zeros(4, *SHAPE), "label": torch.zeros(1, *SHAPE)}
    patches = cut(empty)
    assert [patch["task"] for patch in patches] == [0] * 6
    assert not any(patch["image"].any() for patch in patches)


@pytest.mark.parametrize("shape", [(5, 20, 3), (5, 4, 3), (1, 1, 1), SIZE], ids=str)
def test_a_volume_smaller_than_a_patch_is_padded_with_zeros_at_its_far_ends(shape: Place) -> None:
    case = make_case({(0, 0, 0): ENHANCING}, shape)
    patches = cut(case)
    assert [patch["task"] for patch in patches] == [0, 0, 1, 1, 2, 2]
    inside = tuple(slice(min(extent, side)) for extent, side in zip(shape, SIZE, strict=True))
    for patch in patches[2:]:  # around the first voxel
        expected = torch.zeros(4, *SIZE)
        expected[(slice(None), *inside)] = case["image"][(slice(None), *inside)]
        torch.testing.assert_close(patch["image"], expected)
        assert patch["label"].shape == (1, *SIZE)
        assert int((patch["label"] != 0).sum()) == 1


def test_patches_may_be_flat() -> None:
    case = {"image": torch.ones(4, 24, 20), "label": torch.full((1, 24, 20), EDEMA, dtype=torch.uint8)}
    patches = cut(case, size=(8, 6))
    assert [patch["image"].shape for patch in patches] == [(4, 8, 6)] * 6
    assert [patch["task"] for patch in patches] == [0, 0, 1, 1, 1, 1]


def test_the_same_random_state_cuts_the_same_patches_and_another_others() -> None:
    case = make_case({CORE: ENHANCING, AROUND: EDEMA})
    first, again, other = ([origin(patch) for patch in cut(case, seed)] for seed in (3, 3, 4))
    assert first == again
    assert first != other
    chain = Compose([RandCropByTaskd(SIZE)])
    twice = [[origin(patch) for patch in chain.set_random_state(seed=5)(case)] for _ in range(2)]
    assert twice[0] == twice[1]


def test_patches_are_plain_tensors_and_copies_of_their_own_size() -> None:
    case = make_case({CORE: ENHANCING, AROUND: EDEMA})
    volume = case["image"].clone()
    patches = cut({key: MetaTensor(value, affine=torch.eye(4)) for key, value in case.items()})
    for patch in patches:
        assert type(patch["image"]) is type(patch["label"]) is torch.Tensor
        assert patch["label"].dtype == torch.uint8
        # A view would drag the whole volume along through a worker's queue.
        assert patch["image"].untyped_storage().nbytes() == 4 * 4 * np.prod(SIZE)
        patch["image"].zero_()
        patch["label"].zero_()
    torch.testing.assert_close(case["image"], volume)
    assert int(case["label"].sum()) == ENHANCING + EDEMA


# WT, TC, ET of five voxels, and the class that each becomes.
PROBS = [[0.2, 0.9, 0.9], [0.9, 0.2, 0.9], [0.9, 0.9, 0.2], [0.9, 0.9, 0.9], [0.5, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("scheme", "codes"),
    [("brats2015", [0, 2, 1, 4, 0]), ("brats2017", [0, 2, 1, 4, 0]), ("brats2023", [0, 2, 1, 3, 0]),
     ("msd", [0, 1, 2, 3, 0])],
    ids=str,
)  # fmt: skip
def test_regions_become_one_label_of_the_scheme_and_keep_their_meta(scheme: str, codes: list[int]) -> None:
    probs = MetaTensor(torch.tensor(PROBS).T.reshape(3, 5, 1, 1), affine=torch.tensor(AFFINE), meta={"case": "p1"})
    data = {"pred": probs, "other": "kept"}
    result = RegionsToLabelsd("pred", scheme=scheme)(data)
    label = result["pred"]
    assert label.dtype == torch.uint8
    assert label.shape == (1, 5, 1, 1)
    assert label.flatten().tolist() == codes
    assert isinstance(label, MetaTensor)
    assert label.meta["case"] == "p1"
    np.testing.assert_array_equal(label.affine, AFFINE)
    assert result["other"] == "kept"
    assert data["pred"] is probs


def test_the_default_scheme_has_no_gap() -> None:
    data = {"pred": torch.tensor([[0.4, 0.9], [0.4, 0.9], [0.2, 0.9]]).reshape(3, 2, 1, 1)}
    label = RegionsToLabelsd("pred")(data)["pred"]
    assert label.flatten().tolist() == [0, 3]
    assert type(label) is torch.Tensor


def test_labels_become_the_nested_regions_of_their_scheme_and_keep_their_meta() -> None:
    codes = torch.tensor([0, 1, 2, 4], dtype=torch.uint8).reshape(1, 4, 1, 1)
    label = MetaTensor(codes, affine=torch.tensor(AFFINE), meta={"case": "p1"})
    regions = LabelsToRegionsd("label", scheme="brats2017")({"label": label})["label"]
    assert regions.dtype == torch.bool
    assert regions.flatten(1).int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert isinstance(regions, MetaTensor)
    assert regions.meta["case"] == "p1"
    np.testing.assert_array_equal(regions.affine, AFFINE)


def test_codes_that_the_scheme_does_not_know_are_refused() -> None:
    label = torch.tensor([0, 1, 3]).reshape(1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"label codes of brats2017 must be among \[0, 1, 2, 4\], got \[3\.0\]"):
        LabelsToRegionsd("label", scheme="brats2017")({"label": label})


@pytest.mark.parametrize("value", [0, 3], ids=["empty", "full"])
def test_empty_and_full_labels_become_empty_and_full_regions(value: int) -> None:
    label = torch.full((1, 3, 3, 3), value, dtype=torch.uint8)
    regions = LabelsToRegionsd("label")({"label": label})["label"]
    assert regions.shape == (len(REGIONS), 3, 3, 3)
    assert bool(regions.all()) == bool(regions.any()) == bool(value)
    torch.testing.assert_close(RegionsToLabelsd("label")({"label": regions.float()})["label"], label)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_labels_to_regions_and_back_is_the_same_label(scheme: str) -> None:
    codes = {"brats2015": [0, 1, 2, 4], "brats2017": [0, 1, 2, 4]}.get(scheme, [0, 1, 2, 3])
    label = torch.tensor(codes, dtype=torch.uint8).reshape(1, 4, 1, 1)
    regions = LabelsToRegionsd("pred", scheme=scheme)({"pred": label})["pred"].float()
    torch.testing.assert_close(RegionsToLabelsd("pred", scheme=scheme)({"pred": regions})["pred"], label)


def test_the_brain_crop_keeps_negative_intensities() -> None:
    assert nonzero(torch.tensor([[-1.5, 0, 0, 0], [-1.5, 0, 2, 0]])).tolist() == [[True, False, True, False]]
    image = torch.zeros(4, 9, 9, 9)
    image[1, 2, 3, 4] = -1.5
    image[2, 6, 5, 4] = 2
    crop = CropForegroundd("image", source_key="image", select_fn=nonzero, allow_smaller=True)
    cropped = crop({"image": image})["image"]
    assert cropped.shape == (4, 5, 3, 1)
    assert (float(cropped[1, 0, 0, 0]), float(cropped[2, 4, 2, 0])) == (-1.5, 2)


def test_what_leaves_out_the_inversion_keeps_the_probabilities() -> None:
    # MONAI Label's scoring drops every Invertd from the chain and takes the entropy of the rest.
    assert issubclass(InvertToLabelsd, Invertd)


def test_the_label_map_is_that_of_the_probabilities_on_the_cases_grid() -> None:
    image = MetaTensor(torch.ones(1, 6, 5, 4), affine=torch.diag(torch.tensor([2.0, 1, 1, 1])))
    resample = Spacingd("image", pixdim=0.7)
    data = resample({"image": image})
    probs = torch.rand(3, *data["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    data["pred"] = MetaTensor(probs, meta=data["image"].meta)
    inverted = Invertd("pred", transform=resample, orig_keys="image", nearest_interp=False)(data)
    label = InvertToLabelsd("pred", transform=resample, orig_keys="image")(data)["pred"]
    assert (label.dtype, label.shape) == (torch.uint8, (1, 6, 5, 4))
    assert torch.equal(label, RegionsToLabelsd("pred")(inverted)["pred"])


@pytest.mark.parametrize("name", ["shear", "half a voxel", "twice a voxel", "turn"])
def test_the_label_map_is_that_of_the_probabilities_whatever_is_resampled(name: str) -> None:
    affine = torch.eye(4, dtype=torch.float64)
    if name == "shear":  # all voxels are 1 mm wide, within 0.002 %
        affine[0, 1] = 0.006
    elif name == "turn":
        affine[:2, :2] = torch.tensor([[0.96, -0.28], [0.28, 0.96]])
    else:
        affine[0, 0] = {"half a voxel": 2.0, "twice a voxel": 0.5}[name]
    image = MetaTensor(torch.ones(1, 12, 10, 8), affine=affine, meta={"original_affine": affine.numpy()})
    chain = Compose([Spacingd("image", pixdim=1.0, diagonal=name == "turn")])
    data = chain({"image": image})
    probs = torch.rand(3, *data["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    data["pred"] = MetaTensor(probs, meta=data["image"].meta)
    inverted = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False)(data)
    label = InvertToLabelsd("pred", transform=chain, orig_keys="image")(data)["pred"]
    assert torch.equal(label, RegionsToLabelsd("pred")(inverted)["pred"])


def test_without_resampling_the_label_map_is_the_same_and_one_channel_is_brought_back() -> None:
    affine = torch.tensor([[0, -1.5, 0, 3], [1.0, 0, 0, 9], [0, 0, 2.0, 5], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(torch.zeros(1, 6, 5, 4), affine=affine, meta={"original_affine": affine.numpy()})
    image[:, 1:4, 2:5, 1:] = 1
    chain = Compose([
        Orientationd("image", axcodes="LPS", labels=None),
        CropForegroundd("image", source_key="image", select_fn=nonzero, allow_smaller=True),
        Spacingd("image", pixdim=(1.5, 1, 2)),
    ])  # fmt: skip
    data = chain({"image": image})
    probs = torch.rand(3, *data["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    data["pred"] = MetaTensor(probs, meta=data["image"].meta)
    seen: list[int] = []
    back = chain.inverse
    chain.inverse = lambda case: seen.append(len(case["image"])) or back(case)
    inverted = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False)(data)
    label = InvertToLabelsd("pred", transform=chain, orig_keys="image", scheme="brats2017")(data)["pred"]
    assert torch.equal(label, RegionsToLabelsd("pred", scheme="brats2017")(inverted)["pred"])
    assert (label.dtype, label.shape) == (torch.uint8, (1, 6, 5, 4))
    assert label[:, 1:4, 2:5, 1:].any()
    assert seen == [3, 1]


def test_a_segmentation_is_saved_under_its_case_on_the_grid_of_the_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    volumes = rng.integers(0, 2000, (4, 5, 6, 7)).astype(np.int16)
    files = [str(tmp_path / "in" / f"p1_{ending}.nii.gz") for ending in ("t1", "t1ce", "t2", "flair")]
    (tmp_path / "in").mkdir()
    for volume, file in zip(volumes, files, strict=True):
        nib.save(nib.Nifti1Image(volume, AFFINE), file)
    preprocessing = Compose([LoadCased(), Orientationd("image", axcodes="LPS", labels=None)])
    data = preprocessing({"image": files, "case": "patient 1"})
    data["pred"] = (data["image"][:3] > 1000).float()  # of a volume turned to LPS
    postprocessing = Compose([
        InvertToLabelsd("pred", transform=preprocessing, orig_keys="image", scheme="brats2017"),
        SaveImaged(
            "pred", output_dir=tmp_path / "out", output_postfix="seg", output_dtype=np.uint8, separate_folder=False,
            resample=False, output_name_formatter=case_name, writer=LabelMapWriter,
        ),
    ])  # fmt: skip
    with caplog.at_level("INFO"):
        postprocessing(data)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["patient 1_seg.nii.gz"]
    written = [message for message in caplog.messages if "_seg" in message]
    assert written == [f"writing: {tmp_path / 'out' / 'patient 1_seg.nii.gz'}"]  # and no temporary file
    saved = nib.load(tmp_path / "out" / "patient 1_seg.nii.gz")
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, AFFINE)
    whole, core, enhancing = volumes[:3] > 1000
    expected = np.where(whole & core & enhancing, 4, np.where(whole & core, 1, np.where(whole, 2, 0)))
    np.testing.assert_array_equal(np.asarray(saved.dataobj), expected)


def test_a_moved_threshold_becomes_one_half_and_the_ends_stay() -> None:
    probs = torch.tensor([[0.0, 0.2, 0.5, 1.0]]).repeat(3, 1)
    moved = MoveThresholdsd("pred", thresholds=[0.2, 0.5, 0.8])({"pred": probs.clone()})["pred"]
    # Odds of 0, 1/4, 1 and infinity, over the thresholds' 1/4, 1 and 4.
    expected = torch.tensor([[0, 1 / 2, 4 / 5, 1], [0, 1 / 5, 1 / 2, 1], [0, 1 / 17, 1 / 5, 1]])
    torch.testing.assert_close(moved, expected)


def test_moved_thresholds_draw_the_same_line_and_keep_what_is_known_of_the_image() -> None:
    torch.manual_seed(0)
    probs = MetaTensor(torch.rand(3, 6, 5, 4), meta={"case": "a"})
    moved = MoveThresholdsd("pred", thresholds=[0.3, 0.4, 0.6])({"pred": probs.clone()})["pred"]
    assert torch.equal(moved > 0.5, probs > torch.tensor([0.3, 0.4, 0.6])[:, None, None, None])
    assert moved.meta["case"] == "a"


@pytest.mark.parametrize("thresholds", [[0.5, 0.5], [0.5, 0.5, 1.0], [0.0, 0.5, 0.5]], ids=["two", "one", "zero"])
def test_thresholds_that_are_none_are_refused(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match=r"one number in \(0, 1\) for WT, TC, ET, got"):
        MoveThresholdsd("pred", thresholds=thresholds)


def test_a_file_that_was_not_written_here_is_not_replaced(tmp_path: Path) -> None:
    label = np.zeros((1, 2, 3, 4), np.uint8)

    def write(path: Path) -> None:
        writer = LabelMapWriter()
        writer.set_data_array(label, channel_dim=0)
        writer.set_metadata({"affine": np.eye(4), "missing": "t2"}, resample=False)
        writer.write(path)

    for _ in range(2):
        write(tmp_path / "own_seg.nii.gz")
    truth = tmp_path / "p_seg.nii.gz"
    nib.save(nib.Nifti1Image(label[0], np.eye(4)), truth)
    before = truth.read_bytes()
    with pytest.raises(ValueError, match=r"p_seg\.nii\.gz must not be replaced, as it was not written here"):
        write(truth)
    assert truth.read_bytes() == before
    assert [written_here(tmp_path / name) for name in ("own_seg.nii.gz", "p_seg.nii.gz")] == [True, False]
