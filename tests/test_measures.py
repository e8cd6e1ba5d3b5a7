"""Volumes, lesions and diameters of label maps whose measures are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from omnet_monai.measures import MEASURES, axial_diameter, measure, voxel_volume
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS


def make_label(affine: np.ndarray | None = None) -> MetaTensor:
    """A label map whose axes are L, P and S in mm, unless told otherwise."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    return MetaTensor(torch.zeros(1, 24, 20, 16, dtype=torch.uint8), affine=torch.from_numpy(affine))


def test_volumes_are_voxels_times_their_size_in_ml() -> None:
    label = make_label(np.diag([-1.0, -2.0, 5.0, 1.0]))  # a voxel of 10 mm3
    label[0, 2:12, 2:12, 2:12] = EDEMA  # 1000 voxels, less the 8 and 1 inside
    label[0, 4:6, 4:6, 4:6] = NECROSIS
    label[0, 8, 8, 8] = ENHANCING
    values = measure(label)
    assert {name: values[name] for name in MEASURES[:5]} == pytest.approx(
        {"ml_WT": 10.0, "ml_TC": 0.09, "ml_ET": 0.01, "ml_edema": 9.91, "ml_NCR_NET": 0.08}
    )


def test_axes_that_are_not_at_right_angles_keep_the_volume() -> None:
    affine = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # sheared: the determinant is 1
    label = make_label(affine)
    label[0, :10, :10, :10] = EDEMA
    assert measure(label)["ml_WT"] == pytest.approx(1.0)
    assert voxel_volume(label) == pytest.approx(1.0)
    assert voxel_volume(label.as_tensor()) == 1.0


def test_lesions_that_touch_at_a_corner_are_one_and_a_single_voxel_counts() -> None:
    label = make_label()
    label[0, 2:4, 2:4, 2:4] = EDEMA
    label[0, 4, 4, 4] = ENHANCING  # the corner of the first
    label[0, 20, 15, 10] = EDEMA
    values = measure(label)
    assert [values[f"lesions_{region}"] for region in ("WT", "TC", "ET")] == [2, 1, 1]


@pytest.mark.parametrize("cls", [0, ENHANCING], ids=["empty", "full"])
def test_an_empty_and_a_full_label_map_are_measured(cls: int) -> None:
    label = make_label()
    label[:] = cls
    values = measure(label)
    full = {"ml": 24 * 20 * 16 / 1000, "lesions": 1, "diameter_mm": np.hypot(24, 19)}
    for name, value in full.items():
        assert values[f"{name}_ET"] == pytest.approx(value if cls else 0.0)


@pytest.mark.parametrize(
    ("box", "spacing", "length"),
    [
        ((slice(2, 3), slice(2, 3), slice(2, 3)), (1.0, 1.0, 1.0), 1.0),
        ((slice(2, 12), slice(2, 3), slice(2, 3)), (1.0, 1.0, 1.0), 10.0),
        ((slice(2, 3), slice(2, 12), slice(2, 3)), (1.0, 0.5, 1.0), 5.0),
        ((slice(2, 3), slice(2, 3), slice(2, 12)), (1.0, 1.0, 1.0), 1.0),
        # 4 by 3 voxels of 1 mm: from the left face of one corner to the right face of the opposite.
        ((slice(2, 6), slice(2, 5), slice(2, 3)), (1.0, 1.0, 1.0), np.hypot(4, 2)),
    ],
    ids=["voxel", "row", "column of half mm", "across slices", "rectangle"],
)
def test_a_diameter_runs_from_face_to_face_within_a_slice(
    box: tuple[slice, ...], spacing: tuple[float, ...], length: float
) -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[box] = True
    assert axial_diameter(mask, list(spacing)) == pytest.approx(length)


def test_a_diameter_is_that_of_one_lesion_and_of_the_largest() -> None:
    mask = np.zeros((40, 40, 4), dtype=bool)
    mask[0:5, 0, 0] = mask[30:37, 0, 0] = mask[5:11, 5, 3] = True
    assert axial_diameter(mask, [1.0, 1.0, 1.0]) == pytest.approx(7.0)  # not the 37 between the two in one slice


def test_a_disc_has_its_own_diameter_whatever_its_pixels() -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    mask = ((x - 31.5) ** 2 + (y - 31.5) ** 2 <= 20**2)[..., None]
    assert axial_diameter(mask, [1.0, 1.0, 1.0]) == pytest.approx(40, abs=1)


def test_axial_is_axial_however_the_axes_are_stored() -> None:
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 0, 1]])  # I, P, L
    label = make_label(affine)
    label[0, 2:20, 5, 5] = ENHANCING  # 18 mm from top to bottom
    label[0, 5, 5, 2:12] = ENHANCING  # 10 mm from right to left
    assert measure(label)["diameter_mm_ET"] == pytest.approx(10.0)
