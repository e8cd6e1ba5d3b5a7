"""What a picture of a case shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor

from omnet_monai import pictures
from omnet_monai.pictures import CLASS_COLORS, PREDICTED, TRUE, UNCERTAIN, save_overlay, save_segmentation
from omnet_monai.regions import EDEMA, ENHANCING, NECROSIS

SHAPE = (24, 28, 20)
REGIONS = ("WT", "TC", "ET")


def make_image() -> torch.Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.5


def make_label(cls: int, start: int = 6) -> torch.Tensor:
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[:, start : start + 8, 8:16, 6:14] = cls
    return label


def colored(picture: np.ndarray, color: str) -> int:
    """Count the pixels of a color, outlines and legend."""
    rgb = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return int((np.abs(picture[..., :3] - rgb).max(-1) < 0.12).sum())


def draw(path: Path, label: torch.Tensor, truth: torch.Tensor | None = None) -> np.ndarray:
    save_overlay(make_image(), label, path / "new" / "p1.png", truth, title="p1")
    picture = imread(path / "new" / "p1.png")
    assert picture.shape == (825, 820 if truth is None else 1080, 4)
    return picture


def rows(picture: np.ndarray) -> list[np.ndarray]:
    """Cut out the rows of regions, without title and legend."""
    return [picture[start : start + 250, 60:] for start in (30, 285, 540)]


@pytest.mark.parametrize(
    ("cls", "expected"),
    [(0, set()), (EDEMA, {"WT"}), (NECROSIS, {"WT", "TC"}), (ENHANCING, {"WT", "TC", "ET"})],
    ids=["empty", "edema", "core", "enhancing"],
)
def test_each_region_has_a_row_with_its_outline(tmp_path: Path, cls: int, expected: set[str]) -> None:
    picture = draw(tmp_path, make_label(cls))
    drawn = {region for region, row in zip(REGIONS, rows(picture), strict=True) if colored(row, PREDICTED) > 50}
    assert drawn == expected
    assert not colored(picture, TRUE)


def test_truth_and_prediction_have_their_own_colors_and_either_may_be_empty(tmp_path: Path) -> None:
    label, empty = make_label(EDEMA), make_label(0)
    false, missed = rows(draw(tmp_path, label, empty))[0], rows(draw(tmp_path, empty, label))[0]
    assert colored(false, PREDICTED) > 100 > colored(false, TRUE) == 0
    assert colored(missed, TRUE) > 100 > colored(missed, PREDICTED) == 0


def test_what_is_missed_is_filled_with_the_color_of_the_truth_and_what_is_false_with_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: dict[str, np.ndarray] = {}
    whole = pictures._tint
    monkeypatch.setattr(pictures, "_tint", lambda mask, color: whole(filled.setdefault(color, mask), color))
    draw(tmp_path, make_label(EDEMA, start=10), make_label(EDEMA, start=6))
    # The axial plane of WT comes first: predicted along x from 10 to 18, truly from 6 to 14, along y from 8 to 16.
    assert {color: np.argwhere(mask)[:, 1].tolist() for color, mask in filled.items()} == {
        TRUE: [6, 7, 8, 9] * 8,
        PREDICTED: [14, 15, 16, 17] * 8,
    }


def test_what_only_one_of_them_holds_is_filled() -> None:
    mask = np.array([[True, False]])
    assert pictures._tint(mask, "#0a141e").tolist() == [[[10, 20, 30, 110], [0, 0, 0, 0]]]


def test_the_planes_go_through_the_largest_cluster_and_where_most_is_wrong() -> None:
    true, pred = np.zeros((2, 20, 20, 20), dtype=bool)
    true[2:7, 3:8, 4:9] = True  # center 4, 5, 6
    true[15:17, 15:17, 15:17] = True
    pred[2:7, 3:8, 4:9] = True
    pred[0:4, 0:4, 18] = True  # 16 false voxels, more than the 4 missed of a plane
    views = pictures._views(pred, true, true)
    assert [view[1:] for view in views] == [(2, 6), (1, 5), (0, 4), (2, 18)]
    assert views[3][0] == "axial, most voxels wrong"
    assert pictures._views(true, true, true)[3] == ("nothing is wrong", 2, 6)
    assert len(pictures._views(pred, None, pred)) == 3


def test_a_region_that_is_absent_is_shown_at_the_tumors_center() -> None:
    empty, tumor = np.zeros((2, 10, 10, 10), dtype=bool)
    tumor[1:4, 1:4, 1:4] = True
    assert [view[2] for view in pictures._views(empty, empty, tumor)[:3]] == [2, 2, 2]
    assert [view[2] for view in pictures._views(empty, empty, empty)[:3]] == [5, 5, 5]


def test_volumes_are_in_ml() -> None:
    pred, true = np.zeros((2, 10, 10, 10), dtype=bool)
    pred[:5] = True
    true[:] = True
    assert pictures._caption("WT", pred, true, voxel=3.0) == "WT on FLAIR\ntruth 3.0 ml, prediction 1.5 ml"
    assert pictures._caption("ET", pred, None, voxel=1.0) == "ET on T1C\nprediction 0.500 ml"


def test_a_label_may_come_without_a_channel_and_as_an_array(tmp_path: Path) -> None:
    label = make_label(ENHANCING)
    first = draw(tmp_path, label)
    save_overlay(make_image().numpy(), label[0].numpy(), tmp_path / "p2.png", title="p1")
    np.testing.assert_array_equal(imread(tmp_path / "p2.png"), first)


def test_thick_slices_are_drawn_in_their_proportions(tmp_path: Path) -> None:
    label = make_label(ENHANCING)
    thin = draw(tmp_path, label)
    image = MetaTensor(make_image(), affine=torch.diag(torch.tensor([-1.0, -1.0, 3.0, 1.0])))
    save_overlay(image, label, tmp_path / "p2.png", title="p1")
    # The coronal plane, 24 voxels wide and 20 high, becomes 24 x 60 mm: narrower and taller.
    assert colored(rows(imread(tmp_path / "p2.png"))[0], PREDICTED) != colored(rows(thin)[0], PREDICTED)


def test_a_label_full_of_tumor_and_an_image_of_zeros_are_drawn(tmp_path: Path) -> None:
    full = torch.full((1, *SHAPE), ENHANCING, dtype=torch.uint8)
    save_overlay(torch.zeros(4, *SHAPE), full, tmp_path / "p1.png")
    save_overlay(torch.zeros(4, *SHAPE), 0 * full, tmp_path / "p2.png", truth=0 * full)
    assert imread(tmp_path / "p2.png").shape == (825, 1080, 4)


def test_a_sequence_is_drawn_between_the_extremes_of_its_brain_whatever_its_zero() -> None:
    volume = np.arange(201.0).reshape(1, 1, 201) - 100  # of the others the percentiles are -99.005 and 99.005
    values = pictures._shown(volume)[0, 0, [1, 50, 100, 150, 199]]
    assert values == pytest.approx([0, 49 / 198, 0, 149 / 198, 1], abs=1e-4)
    assert pictures._shown(volume - 1000)[0, 0, [1, 199]] == pytest.approx([0, 1], abs=1e-4)  # all of it below 0
    assert not pictures._shown(np.full((2, 2, 2), 7.0)).any()


@pytest.mark.parametrize("shift", [-2.0, -0.5], ids=["below 0", "normalized"])
def test_negative_intensities_are_drawn_as_bright_as_positive_ones(tmp_path: Path, shift: float) -> None:
    for name, image in (("p1", make_image() + 1), ("p2", make_image() + shift)):
        save_overlay(image, make_label(0), tmp_path / f"{name}.png")
    first, second = (imread(tmp_path / f"{name}.png")[..., :3] for name in ("p1", "p2"))
    assert np.abs(first - second).mean() < 0.001


def test_each_plane_has_the_side_of_the_patient_that_lies_on_its_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[str] = []
    text = Axes.text
    monkeypatch.setattr(Axes, "text", lambda axis, x, y, s, **how: marks.append(s) or text(axis, x, y, s, **how))
    save_overlay(make_image(), make_label(EDEMA), tmp_path / "p1.png", make_label(EDEMA))
    assert marks == ["R", "R", "A", "R"] * 3  # axial, coronal, sagittal, and the axial plane of most errors
    marks.clear()
    save_segmentation(make_image(), make_label(EDEMA), torch.zeros(1, *SHAPE), tmp_path / "p2.png")
    assert marks == ["R"] * 7 + ["A"] + ["R"] * 2


def test_a_picture_that_cannot_be_saved_leaves_no_figure_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(figure: Figure, *args: object, **how: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    before = pyplot.get_fignums()
    for draw in (
        lambda: save_overlay(make_image(), make_label(EDEMA), tmp_path / "p1.png"),
        lambda: save_segmentation(make_image(), make_label(EDEMA), torch.zeros(1, *SHAPE), tmp_path / "p1.png"),
    ):
        with pytest.raises(OSError, match="disk full"):
            draw()
    assert pyplot.get_fignums() == before
    assert not list(tmp_path.iterdir())


def test_planes_have_anterior_or_superior_up_and_the_patients_right_on_the_left() -> None:
    volume = np.zeros((3, 3, 3))  # axes that grow to the left, to posterior, to superior
    volume[0, 1, 1], volume[1, 0, 1], volume[1, 1, 2] = 1, 2, 3  # right, anterior, superior of the center
    axial, coronal, sagittal = (pictures._slice(volume, normal, 1) for normal in (2, 1, 0))
    assert axial.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert coronal.tolist() == [[0, 3, 0], [1, 0, 0], [0, 0, 0]]
    assert sagittal.tolist() == [[0, 3, 0], [2, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("cls", [0, EDEMA, NECROSIS, ENHANCING], ids=["empty", "edema", "NCR/NET", "enhancing"])
def test_a_segmentation_shows_each_class_in_its_color_below_bare_sequences(tmp_path: Path, cls: int) -> None:
    image = make_image()  # half of it below 0, as normalized intensities are
    image[:, :2] = 0
    save_segmentation(image, make_label(cls), torch.zeros(1, *SHAPE), tmp_path / "p1.png", title="p1")
    picture = imread(tmp_path / "p1.png")
    middle = len(picture) // 2
    above, below = picture[:middle], picture[middle : -len(picture) // 12]  # without the legend
    for other, color in CLASS_COLORS.items():
        assert colored(above, color) == 0
        assert (colored(below, color) > 50) == (other == cls)
    bright = np.count_nonzero((above[..., :3] > 0.9).all(-1), axis=0)
    assert [part.sum() > 20 for part in np.array_split(bright, 5)] == [True] * 5  # four sequences, and FLAIR again


def test_uncertainty_is_drawn_where_the_tumor_is_and_where_there_is_most_of_it(tmp_path: Path) -> None:
    doubt = torch.zeros(1, *SHAPE)
    doubt[..., 1] = 1  # a plane without tumor
    save_segmentation(make_image(), make_label(ENHANCING), doubt, tmp_path / "p1.png")
    picture = imread(tmp_path / "p1.png")
    middle, right = len(picture) // 2, picture.shape[1] * 4 // 5
    drawn = [colored(part, UNCERTAIN) > 500 for part in (picture[:middle, right:], picture[middle:-60, right:])]
    assert drawn == [False, True]
    assert colored(picture[:-60, :right], UNCERTAIN) == 0


def test_a_sequence_that_is_missing_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axis, text, **how: titles.append(text))
    image = make_image()
    image[2] = 0
    save_segmentation(image, make_label(ENHANCING), torch.zeros(1, *SHAPE), tmp_path / "p1.png")
    assert titles[:5] == ["T1", "T1C", "T2 is missing", "FLAIR", "uncertainty, axial"]
    assert titles[5:] == [f"{view} on FLAIR" for view in ("axial", "coronal", "sagittal")] + [
        "axial on T1C",
        "uncertainty, axial, where most",
    ]
    titles.clear()
    image[3] = image[1] = 0  # T1 alone is left
    save_segmentation(image, make_label(ENHANCING), torch.zeros(1, *SHAPE), tmp_path / "p1.png")
    assert titles[:4] == ["T1", "T1C is missing", "T2 is missing", "FLAIR is missing"]
    assert all(title.endswith(" on T1") for title in titles[5:9])


def test_a_segmentation_of_nothing_but_background_is_a_picture_too(tmp_path: Path) -> None:
    save_segmentation(torch.zeros(4, *SHAPE), make_label(0), torch.zeros(1, *SHAPE), tmp_path / "empty.png")
    assert imread(tmp_path / "empty.png").shape[2] == 4


@pytest.mark.parametrize("shape", [(24, 28, 1), (1, 28, 20)], ids=["axial", "sagittal"])
def test_a_volume_of_one_slice_is_drawn(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    label = torch.full((1, *shape), ENHANCING, dtype=torch.uint8)
    label[:, : shape[0] // 2] = 0
    save_overlay(image, label, tmp_path / "p1.png", truth=label)
    save_segmentation(image, label, torch.zeros(1, *shape), tmp_path / "p2.png")
    for name in ("p1.png", "p2.png"):
        assert imread(tmp_path / name).shape[2] == 4
