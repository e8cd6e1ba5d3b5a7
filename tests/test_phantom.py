"""Tests of the generated brains: what each kind holds, how it looks to a network, how it lies on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from omnet_monai import phantom
from omnet_monai.demo import generate_cases
from omnet_monai.phantom import KINDS, SMALLEST_SIZE, make_phantom, write_phantoms
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS, SEQUENCES

T1, T1C, T2, FLAIR = range(4)
SIZE = (52, 52, 36)


def counts(label: np.ndarray) -> tuple[int, int, int]:
    return tuple(int((label == cls).sum()) for cls in (NECROSIS, EDEMA, ENHANCING))


def normal_tissue(images: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The brain without tumor and without its dark surface."""
    return ndimage.binary_erosion(images[T1] > 0, iterations=3) & ~ndimage.binary_dilation(label > 0, iterations=2)


@pytest.mark.parametrize(
    "size", [SMALLEST_SIZE, (33, 47, 29), (96, 96, 64)], ids=["smallest", "odd_numbers", "default"]
)
def test_images_are_positive_integers_inside_one_brain_and_zero_outside(size: tuple[int, int, int]) -> None:
    images, label = make_phantom(1, size, "common")
    assert (images.shape, images.dtype, label.shape, label.dtype) == ((4, *size), np.int16, size, np.uint8)
    brain = (images > 0).all(0)
    np.testing.assert_array_equal(images.any(0), brain)
    assert images.min() == 0
    assert not label[~brain].any()
    assert ndimage.label(brain)[1] == 1


def test_brain_fills_the_volume_in_the_proportions_of_a_real_one() -> None:
    # The height of 138 mm in 0.94 * 64 slices makes voxels of 2.29 mm: 1.44e6 mm3 are 119,000 of them.
    images, _ = make_phantom(0, (96, 96, 64), "without_tumor")
    assert (images[T1] > 0).sum() == pytest.approx(119_000, rel=0.1)
    extent = [np.ptp(axis) + 1 for axis in np.nonzero(images[T1])]
    np.testing.assert_allclose(extent, np.array([138, 170, 138]) / 2.29, rtol=0.1)


def test_same_seed_gives_the_same_phantom_and_another_seed_another() -> None:
    first, again, other = (make_phantom(seed, SIZE) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert ((first[0] > 0) != (other[0] > 0)).any()
    assert (first[1] != other[1]).any()


def test_kind_changes_the_tumor_but_not_the_brain() -> None:
    brains = [make_phantom(5, SIZE, kind)[0][T1] > 0 for kind in KINDS]
    for brain in brains[1:]:
        np.testing.assert_array_equal(brain, brains[0])


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed_{seed}")
def test_common_case_has_all_classes_and_a_plausible_size(seed: int) -> None:
    images, label = make_phantom(seed, SIZE, "common")
    necrosis, edema, enhancing = counts(label)
    assert edema > 0
    assert enhancing > 0
    whole, core = necrosis + edema + enhancing, necrosis + enhancing
    # The extremes of 367 cases: WT between 0.5 % and 25 % of the brain, and a core above 5 % of it.
    assert 0.004 < whole / (images[T1] > 0).sum() < 0.27
    assert 0.04 < core / whole < 0.97


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed_{seed}")
def test_core_is_one_piece_inside_one_component_of_the_tumor(seed: int) -> None:
    _, label = make_phantom(seed, (64, 64, 44), "common")
    core = np.isin(label, (NECROSIS, ENHANCING))
    parts, number = ndimage.label(label > 0)
    assert 1 <= number <= 20  # a second component may be ragged
    assert len(np.unique(parts[core])) == 1
    assert ndimage.label(core)[1] == 1


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed_{seed}")
def test_case_without_enhancing_tumor_has_a_core_of_necrosis_alone(seed: int) -> None:
    necrosis, edema, enhancing = counts(make_phantom(seed, SIZE, "without_enhancing")[1])
    assert enhancing == 0
    assert necrosis > 0
    assert edema > 0


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed_{seed}")
def test_tiny_core_is_at_most_a_twentieth_of_the_tumor(seed: int) -> None:
    necrosis, edema, enhancing = counts(make_phantom(seed, SIZE, "tiny_core")[1])
    assert enhancing > 0
    assert 0 < necrosis + enhancing <= 0.05 * (necrosis + edema + enhancing) + 1


def test_case_without_tumor_has_an_empty_label_and_a_whole_brain() -> None:
    images, label = make_phantom(0, SIZE, "without_tumor")
    assert not label.any()
    assert (images[T1] > 0).any()


def test_random_kind_follows_its_rates() -> None:
    assert sum(KINDS.values()) == pytest.approx(1.0)
    # Of 40 cases 40 * 0.05 = 2 are expected without tumor and 40 * 0.07 = 2.8 with one that does not enhance.
    labels = [make_phantom(seed, SMALLEST_SIZE)[1] for seed in range(40)]
    without = [label for label in labels if not label.any()]
    unenhancing = [label for label in labels if label.any() and not (label == ENHANCING).any()]
    assert 1 <= len(without) <= 6
    assert 1 <= len(unenhancing) <= 8


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed_{seed}")
def test_contrasts_are_those_of_real_cases(seed: int) -> None:
    images, label = make_phantom(seed, (96, 96, 64), "common")
    brain, normal = images[T1] > 0, normal_tissue(images, label)
    z = [(image - image[brain].mean()) / image[brain].std() for image in images.astype(float)]
    # At least one standard deviation of the brain; measured: 1.8 for edema in FLAIR, 2.2 against 0.3 for ET.
    assert np.median(z[FLAIR][label == EDEMA]) > np.median(z[FLAIR][normal]) + 1.0
    assert np.median(z[T1C][label == ENHANCING]) > np.median(z[T1][label == ENHANCING]) + 0.5
    assert np.median(z[T1C][label == ENHANCING]) > np.median(z[T1C][label == NECROSIS]) + 1.0
    assert np.median(z[T2][label == NECROSIS]) > np.median(z[T2][normal]) + 0.5


def test_enhancing_tumor_forms_a_ring_around_necrosis() -> None:
    rims, centers = [], []
    for seed in range(8):
        label = make_phantom(seed, (64, 64, 44), "common")[1]
        depth = ndimage.distance_transform_edt(np.isin(label, (NECROSIS, ENHANCING)))
        relative = depth / depth.max()  # 1 at the center of the core
        rims.append((label[(relative > 0) & (relative < 0.5)] == ENHANCING).mean())
        centers.append((label[relative >= 0.5] == ENHANCING).mean())
    assert np.mean(rims) > np.mean(centers) + 0.2


def test_median_contrast_between_cases_stays_near_the_table() -> None:
    drawn = []
    for seed in range(6):
        images, label = make_phantom(seed, SIZE, "common")
        flair = images[FLAIR].astype(float)
        brain = flair > 0
        drawn.append(np.median(flair[label == EDEMA]) / flair[brain].mean())
    # Intensity is 1 + variation * z in units of the mean: 1 + 0.37 * 1.78 = 1.66, over a mean raised by the tumor.
    assert np.mean(drawn) == pytest.approx(1.66, abs=0.2)


def test_written_cases_have_the_names_codes_and_header_of_brats(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path / "new", cases=2, size=SMALLEST_SIZE)
    assert [folder.name for folder in folders] == ["phantom_000", "phantom_001"]
    names = {f"phantom_001_{suffix}.nii.gz" for suffix in ("t1", "t1ce", "t2", "flair", "seg")}
    assert {path.name for path in folders[1].iterdir()} == names  # and no file half written
    label = nib.load(folders[1] / "phantom_001_seg.nii.gz")
    assert label.get_data_dtype() == np.uint8
    assert set(np.unique(label.dataobj)) == {0, 1, 2, 4}
    # 24 slices of 32 x 32 voxels of 1 mm, left and back positive in the index: the origin is at -(-31) in y.
    np.testing.assert_array_equal(label.affine, [[-1, 0, 0, 0], [0, -1, 0, 31], [0, 0, 1, 0], [0, 0, 0, 1]])
    images, classes = make_phantom(np.random.SeedSequence((0, 1)), SMALLEST_SIZE, "common")
    for image, suffix in zip(images, ("t1", "t1ce", "t2", "flair"), strict=True):
        written = nib.load(folders[1] / f"phantom_001_{suffix}.nii.gz")
        assert written.get_data_dtype() == np.int16
        np.testing.assert_array_equal(written.dataobj, image)
    np.testing.assert_array_equal(np.asarray(label.dataobj) == 4, classes == ENHANCING)


def test_eight_cases_hold_one_of_each_special_kind_after_five_common_ones(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path, cases=8, size=SMALLEST_SIZE)
    labels = [np.asarray(nib.load(folder / f"{folder.name}_seg.nii.gz").dataobj) for folder in folders]
    assert [bool((label == 4).any()) for label in labels] == [True] * 5 + [False, True, False]
    assert [bool(label.any()) for label in labels] == [True] * 7 + [False]
    core, whole = np.isin(labels[6], (1, 4)).sum(), (labels[6] > 0).sum()
    assert core <= 0.05 * whole + 1


def test_all_cases_are_of_one_kind_where_that_is_asked_for(tmp_path: Path) -> None:
    folders = write_phantoms(tmp_path, cases=8, size=SMALLEST_SIZE, kind="common")
    labels = [np.asarray(nib.load(folder / f"{folder.name}_seg.nii.gz").dataobj) for folder in folders]
    assert all(set(np.unique(label)) == {0, 1, 2, 4} for label in labels)


def test_a_case_does_not_depend_on_the_number_of_cases(tmp_path: Path) -> None:
    few = write_phantoms(tmp_path / "few", cases=1, seed=7, size=SMALLEST_SIZE)[0] / "phantom_000_t1.nii.gz"
    more = write_phantoms(tmp_path / "more", cases=2, seed=7, size=SMALLEST_SIZE)[0] / "phantom_000_t1.nii.gz"
    np.testing.assert_array_equal(nib.load(few).dataobj, nib.load(more).dataobj)


def test_table_names_every_class_and_sequence() -> None:
    assert [key for key in phantom._CONTRAST if isinstance(key, int)] == [NECROSIS, EDEMA, ENHANCING]
    assert all(len(row) == len(SEQUENCES) for rows in phantom._CONTRAST.values() for row in rows)


@pytest.mark.parametrize(
    "size", [(32,), (32, 32), (31, 32, 24), (32, 32, 23)], ids=["one_axis", "two_axes", "narrow", "flat"]
)
def test_size_below_the_smallest_is_refused(size: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size must be three numbers of at least \(32, 32, 24\), got"):
        make_phantom(0, size)
    with pytest.raises(ValueError, match="size must be three numbers"):
        write_phantoms(tmp_path, cases=1, size=size)
    assert not list(tmp_path.iterdir())


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be random or one of common, without_enhancing"):
        make_phantom(0, SIZE, "normal")


@pytest.mark.parametrize("write", [write_phantoms, generate_cases], ids=["alone", "with a data list"])
def test_no_cases_and_seeds_below_0_are_refused(write: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cases must be at least 1, got 0$"):
        write(tmp_path, cases=0)
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1$"):
        write(tmp_path, cases=1, seed=-1)
    assert not list(tmp_path.iterdir())
