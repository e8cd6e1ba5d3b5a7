"""Cases are tiny volumes without symmetry, so that a swapped axis or channel shows."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, CropForegroundd, EnsureChannelFirstd, Invertd, Orientationd, SaveImage, Spacingd

from omnet_monai import loading, reading
from omnet_monai.datalist import read_cases, write_datalist
from omnet_monai.finding import find_cases
from omnet_monai.loading import LoadCased
from omnet_monai.regions import BACKGROUND, EDEMA, ENHANCING, NECROSIS, SEQUENCES

SHAPE = (8, 9, 10)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, -1.5, 0, 239], [0, 0, 2.0, -7], [0, 0, 0, 1]])
ENDINGS = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    volumes = {sequence: rng.integers(0, 2000, SHAPE).astype(np.int16) for sequence in SEQUENCES}
    return volumes | {"label": rng.choice(np.array([0, 1, 2, 4], np.uint8), SHAPE)}


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def save_mha(array: np.ndarray, path: Path) -> str:
    """Save as MetaImage what ``save`` saves as NIfTI: ITK wants axes reversed and an origin and direction to LPS."""
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    to_lps = np.diag([-1.0, -1, 1]) @ AFFINE[:3]
    spacing = np.linalg.norm(to_lps[:, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(to_lps[:, 3])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(to_lps[:, :3] / spacing)))
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(image, str(path))
    return str(path)


def save_case(folder: Path, arrays: Arrays, case: str = "p1") -> dict[str, Any]:
    files = [save(arrays[sequence], folder / f"{case}_{ending}.nii.gz") for sequence, ending in ENDINGS.items()]
    return {"case": case, "image": files, "label": save(arrays["label"], folder / f"{case}_seg.nii.gz")}


def save_list(folder: Path, arrays: Arrays) -> dict[str, Any]:
    return {"image": save_case(folder, arrays)["image"]}


def save_folder(folder: Path, arrays: Arrays) -> dict[str, Any]:
    save_case(folder, arrays)
    return {"image": str(folder)}


def save_4d(folder: Path, arrays: Arrays) -> dict[str, Any]:
    order = ["flair", "t1", "t1c", "t2"]
    stack = np.stack([arrays[sequence] for sequence in order], axis=-1)
    return {"image": save(stack, folder / "p1.nii.gz"), "order": order}


def save_itk_4d(folder: Path, arrays: Arrays) -> dict[str, Any]:
    """Save as ITK saves vectors: with a fourth axis of one."""
    stack = np.stack([arrays[sequence] for sequence in SEQUENCES], axis=-1)
    return {"image": save(stack[:, :, :, None], folder / "p1.nii.gz")}


def save_msd(folder: Path, arrays: Arrays) -> dict[str, Any]:
    data = save_4d(folder / "imagesTs", arrays)
    del data["order"]
    return data


def save_bare(folder: Path, arrays: Arrays) -> dict[str, Any]:
    for sequence in SEQUENCES:
        save(arrays[sequence], folder / "p1" / f"{sequence}.nii.gz")
    return {"image": str(folder / "p1")}


def save_siblings(folder: Path, arrays: Arrays) -> dict[str, Any]:
    return {"image": save_case(folder, arrays)["image"][3]}


def save_modalities(folder: Path, arrays: Arrays) -> dict[str, Any]:
    save_case(folder / "modalities" / "p1", arrays)
    return {"image": save(arrays["flair"], folder / "p1.nii.gz")}


def save_mha_list(folder: Path, arrays: Arrays) -> dict[str, Any]:
    names = ("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")
    files = [f"VSD.Brain.XX.O.{name}.{number}" for number, name in enumerate(names)]
    paths = [folder / "p1" / name / f"{name}.mha" for name in files]
    return {"image": [save_mha(arrays[sequence], path) for sequence, path in zip(SEQUENCES, paths, strict=True)]}


FORMS = [
    save_list, save_folder, save_4d, save_itk_4d, save_msd, save_bare, save_siblings, save_modalities, save_mha_list
]  # fmt: skip


def form_name(form: Callable[..., Any]) -> str:
    return form.__name__.removeprefix("save_")


def test_the_affine_is_that_of_the_sform_where_the_header_states_another_spacing(
    tmp_path: Path, arrays: Arrays
) -> None:
    # A tilt of 8 degrees with four digits: columns are not quite as long as the spacing says, and there is no qform.
    tilted = np.array([[-1, 0, 0, 80], [0, -0.9903, -0.1392, 100], [0, -0.1392, 0.9903, -60], [0, 0, 0, 1.0]])
    for sequence, ending in ENDINGS.items():
        image = nib.Nifti1Image(arrays[sequence], None)
        image.set_sform(tilted, code=1)
        image.set_qform(None, code=0)
        image.header.set_zooms((1, 1, 1))
        nib.save(image, tmp_path / f"p1_{ending}.nii.gz")
    np.testing.assert_allclose(LoadCased()({"image": str(tmp_path)})["image"].affine, tilted, atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=form_name)
def test_every_form_gives_the_same_image_and_meta(tmp_path: Path, arrays: Arrays, form: Callable[..., Any]) -> None:
    image = LoadCased()(form(tmp_path, arrays))["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), np.stack([arrays[sequence] for sequence in SEQUENCES]))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.meta["original_affine"], AFFINE, atol=1e-6)
    assert tuple(image.meta["spatial_shape"]) == SHAPE
    assert image.meta["case"] == "p1"
    assert Path(image.meta["filename_or_obj"]).name[:2] in ("p1", "t1", "VS")


def test_the_first_sequence_names_the_file(tmp_path: Path, arrays: Arrays) -> None:
    for path in (tmp_path, tmp_path / "p1_flair.nii.gz"):
        save_case(tmp_path, arrays)
        image = LoadCased()({"image": str(path)})["image"]
        assert image.meta["filename_or_obj"] == str(tmp_path / "p1_t1")


def test_resampling_leaves_alone_what_stands_beside_the_image(tmp_path: Path, arrays: Arrays) -> None:
    # MONAI Label adds the path, and after a NIfTI file's name Spacingd takes each "image_*" for a dictionary to fill.
    path = save_case(tmp_path, arrays)["image"][0]
    result = Spacingd("image", pixdim=2.0)(LoadCased()({"image": path, "image_path": path}))
    assert result["image_path"] == path
    assert result["image"].pixdim.tolist() == [2.0] * 3


def test_the_argument_gives_the_order_of_a_file_that_does_not(tmp_path: Path, arrays: Arrays) -> None:
    data = save_4d(tmp_path, arrays)
    order = data.pop("order")
    torch.testing.assert_close(LoadCased(order=order)(data), LoadCased()(data | {"order": order}), check_stride=False)


@pytest.mark.parametrize(
    ("form", "order"),
    [(save_msd, "flair, t1, t1c, t2"), (save_itk_4d, "t1, t1c, t2, flair")],
    ids=["folders of MSD", "elsewhere"],
)
def test_an_order_that_nobody_stated_is_logged(
    tmp_path: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture, form: Callable[..., Any], order: str
) -> None:
    data = form(tmp_path, arrays)
    with caplog.at_level(logging.INFO, "omnet_monai.loading"):
        LoadCased()(data)
    message = f"case p1: {data['image']}: no order was given, channels are read as {order}"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", message)]


@pytest.mark.parametrize("given", ["by the case", "by the argument", "by four files"], ids=str)
def test_an_order_that_was_stated_is_not_logged(
    tmp_path: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    data = save_list(tmp_path, arrays) if given == "by four files" else save_4d(tmp_path, arrays)
    order = data.pop("order") if given == "by the argument" else None
    with caplog.at_level(logging.INFO, "omnet_monai.loading"):
        LoadCased(order=order)(data)
    assert not caplog.records


def test_everything_else_is_kept_and_the_order_that_no_longer_holds_is_not(tmp_path: Path, arrays: Arrays) -> None:
    data = save_4d(tmp_path, arrays) | {"case": "named", "patient": "P", "fold": 2}
    result = LoadCased()(data)
    assert set(result) == {"image", "case", "patient", "fold"}
    assert (result["case"], result["patient"], result["fold"]) == ("named", "P", 2)
    assert result["image"].meta["case"] == "named"
    assert isinstance(data["image"], str)


@pytest.mark.parametrize(
    ("scheme", "codes", "classes"),
    [
        ("brats2015", [0, 1, 2, 3, 4], [0, 1, 2, 1, 3]),
        ("brats2017", [0, 1, 2, 4], [0, 1, 2, 3]),
        ("brats2023", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("msd", [0, 1, 2, 3], [0, 2, 1, 3]),
        (None, [0, 1, 2, 4], [0, 1, 2, 3]),
    ],
    ids=["brats2015", "brats2017", "brats2023", "msd", "none"],
)
@pytest.mark.parametrize("given", ["by the case", "by the argument"], ids=str)
def test_a_label_is_read_by_its_scheme(
    tmp_path: Path, arrays: Arrays, scheme: str | None, codes: list[int], classes: list[int], given: str
) -> None:
    data = save_case(tmp_path, arrays)
    pick = np.arange(np.prod(SHAPE)).reshape(SHAPE) % len(codes)
    save(np.array(codes, np.float32)[pick], tmp_path / "p1_seg.nii.gz")
    by_case = scheme is not None and given == "by the case"
    label = LoadCased(scheme="msd" if by_case else scheme)(data | ({"scheme": scheme} if by_case else {}))["label"]
    assert isinstance(label, MetaTensor)
    assert label.dtype == torch.uint8
    np.testing.assert_array_equal(label[0].numpy(), np.array(classes)[pick])
    np.testing.assert_allclose(label.affine, AFFINE)


def test_a_metaimage_label_with_the_names_of_2017_is_read_by_the_scheme_of_2015(tmp_path: Path, arrays: Arrays) -> None:
    for sequence, name in zip(SEQUENCES, ("T1", "T1c", "T2", "Flair"), strict=True):
        save_mha(arrays[sequence], tmp_path / f"P1_{name}.mha")
    codes = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 5
    save_mha(codes, tmp_path / "P1_seg.mha")
    (case,), _ = find_cases(tmp_path)
    assert case["scheme"] == "brats2015"
    label = LoadCased()(case)["label"]
    np.testing.assert_array_equal(label[0].numpy(), np.array([0, 1, 2, 1, 3])[codes])


def test_the_resection_cavity_is_background_where_the_name_of_the_label_alone_tells_its_scheme(
    tmp_path: Path, arrays: Arrays
) -> None:
    data = save_case(tmp_path, arrays)
    data["label"] = shutil.move(data["label"], tmp_path / "p1-seg.nii.gz")
    with pytest.warns(UserWarning, match="voxels of resection cavity"):
        label = LoadCased()(data)["label"]
    assert set(label.unique().tolist()) == {0, 1, 2}


def test_the_resection_cavity_of_2023_becomes_background_with_a_warning(tmp_path: Path, arrays: Arrays) -> None:
    data = save_case(tmp_path, arrays) | {"scheme": "brats2023"}
    count = int((arrays["label"] == 4).sum())
    with pytest.warns(UserWarning, match=rf"case p1: .*p1_seg.nii.gz: {count} voxels of resection cavity"):
        label = LoadCased()(data)["label"]
    assert set(label.unique().tolist()) == {0, 1, 2}


def test_a_small_shift_of_the_origin_warns_with_its_length_and_the_first_holds(tmp_path: Path, arrays: Arrays) -> None:
    data = save_case(tmp_path, arrays)
    shifted = AFFINE.copy()
    shifted[:3, 3] += (0.3, 0.4, 0)
    save(arrays["t2"], tmp_path / "p1_t2.nii.gz", shifted)
    with pytest.warns(UserWarning, match=r"case p1: .*p1_t1.nii.gz.*origins differ.*p1_t2.nii.gz by 0.500 mm$"):
        image = LoadCased()(data)["image"]
    np.testing.assert_allclose(image.affine, AFFINE)


def test_rounding_in_a_header_passes_without_a_warning(tmp_path: Path, arrays: Arrays) -> None:
    data = save_case(tmp_path, arrays)
    save(arrays["t2"], tmp_path / "p1_t2.nii.gz", AFFINE + 2e-4 * np.eye(4, 4, 1))
    LoadCased()(data)


def replace(index: int, ending: str) -> Callable[[dict[str, Any], Path, Arrays], None]:
    """Put another file of the case at a place of the list."""

    def spoil(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
        data["image"][index] = str(folder / f"p1_{ending}.nii.gz")

    return spoil


def drop_last(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"].pop()


def delete_file(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    Path(data["image"][2]).unlink()


def delete_sibling(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    Path(data["image"][2]).unlink()
    data["image"] = data["image"][0]


def delete_in_folder(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    delete_sibling(data, folder, arrays)
    data["image"] = str(folder)


def use_t1_under_another_name(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"][2] = shutil.copy(data["image"][0], folder / "p1-t1n.nii.gz")


def link_t1(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    (folder / "second.nii.gz").symlink_to(data["image"][0])
    data["image"][2] = str(folder / "second.nii.gz")


def swap(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"][2:] = data["image"][:1:-1]


def swap_bare(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    save_bare(folder, arrays)
    data["image"] = [str(folder / "p1" / f"{sequence}.nii.gz") for sequence in ("t1", "t2", "t1c", "flair")]


def rewrite(
    part: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE
) -> Callable[[dict[str, Any], Path, Arrays], None]:
    """Save a part of the case anew, with a change."""

    def spoil(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
        name = "seg" if part == "label" else ENDINGS[part]
        save(change(arrays[part]), folder / f"p1_{name}.nii.gz", affine)

    return spoil


def first_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.astype(np.float32)
        changed[0, 0, 0] = value
        return changed

    return change


def moved(mm: float, row: int, column: int) -> np.ndarray:
    affine = AFFINE.copy()
    affine[row, column] += mm
    return affine


def colored(array: np.ndarray) -> np.ndarray:
    return np.zeros(array.shape, np.dtype([("R", np.uint8), ("G", np.uint8), ("B", np.uint8)]))


def truncate(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    path = Path(data["image"][2])
    path.write_bytes(path.read_bytes()[:-400])


def damage(part: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, Any], Path, Arrays], None]:
    """Change the bytes of a part's compressed file."""

    def spoil(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
        path = folder / f"p1_{part}.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def flip_a_voxel(content: bytes) -> bytes:
    """Flip a bit of the last voxel where nothing but the checksum tells."""
    stored = gzip.compress(gzip.decompress(content), compresslevel=0)
    return stored[:-9] + bytes([stored[-9] ^ 1]) + stored[-8:]


def flip_the_checksum(content: bytes) -> bytes:
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


def truncate_plain(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    path = Path(save(arrays["t2"], folder / "p1_t2.nii"))
    path.write_bytes(path.read_bytes()[:-400])
    data["image"][2] = str(path)


def truncate_mha(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    path = Path(save_mha(arrays["t2"], folder / "p1_t2.mha"))
    path.write_bytes(path.read_bytes()[:-400])
    data["image"][2] = str(path)


def sized(side: int, name: str) -> Callable[[dict[str, Any], Path, Arrays], None]:
    """State a first side of the volume in the header of a NIfTI file."""

    def change(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
        header = bytearray(nib.Nifti1Image(arrays["t2"], np.eye(4)).to_bytes())
        header[42:44] = side.to_bytes(2, "little", signed=True)  # dim[1]
        path = folder / name
        path.write_bytes(gzip.compress(header) if name.endswith(".gz") else header)
        data["image"][2] = str(path)

    return change


def write_text(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    Path(data["image"][2]).write_text("<html>404</html>")


def use_png(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"][2] = shutil.copy(data["image"][2], folder / "p1_t2.png")


def use_4d(channels: int, order: list[str] | None = None) -> Callable[[dict[str, Any], Path, Arrays], None]:
    def spoil(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
        data["image"] = save(np.stack([arrays["t1"]] * channels, -1), folder / "all.nii.gz")
        data |= {"order": order} if order else {}

    return spoil


def use_3d(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"] = save(arrays["t1"], folder / "all.nii.gz")


def use_4d_with_an_empty_channel(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    stack = np.stack([arrays[sequence] for sequence in SEQUENCES], -1)
    stack[..., 2] = 0
    data["image"] = save(stack, folder / "all.nii.gz")


def use_array(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"] = arrays["t1"]


def use_nowhere(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    data["image"] = str(folder / "nowhere.nii.gz")


def use_empty_folder(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    (folder / "empty").mkdir()
    data["image"] = str(folder / "empty")


def use_two_cases(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    save_case(folder / "more", arrays, "p2")
    data["image"] = str(folder)


def delete_label(data: dict[str, Any], folder: Path, arrays: Arrays) -> None:
    Path(data["label"]).unlink()


T2 = r"p1_t2\.nii\.gz: "
SEG = r"p1_seg\.nii\.gz: "
FLAT = AFFINE @ np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
BAD = {
    "three files": (drop_last, "image must list t1, t1c, t2, flair, got 3 files: .*p1_t1.nii.gz"),
    "file absent": (delete_file, T2 + "missing sequence: the file of t2 must exist"),
    "sibling absent": (delete_sibling, r"p1_t1\.nii\.gz: a file for each of .* must be there, got missing t2"),
    "file of folder absent": (delete_in_folder, "a file for each of .* must be there, got missing t2"),
    "file twice": (replace(2, "t1"), r"p1_t1\.nii\.gz: a sequence must be listed once, got t1 twice"),
    "sequence twice": (use_t1_under_another_name, r"p1-t1n\.nii\.gz: a sequence must be listed once, got t1 twice"),
    "file twice by a link": (link_t1, r"second\.nii\.gz: a sequence must be listed once, got it twice"),
    "two files swapped": (swap, r"p1_flair\.nii\.gz: file must be t2 by its place in the list, got flair by its name"),
    "two bare files swapped": (
        swap_bare,
        r"t2\.nii\.gz: file must be t1c by its place in the list, got t2 by its name",
    ),
    "label among the sequences": (replace(2, "seg"), SEG + "file must be t2 by its place .* got label by its name"),
    "shape": (rewrite("t2", lambda a: a[1:]), T2 + r"files must share a spatial shape, got \(7, 9, 10\) beside \(8, "),
    "4-D sequence": (rewrite("t2", lambda a: np.stack([a, a], -1)), T2 + r"t2 must be a 3-D image, got shape \(8, "),
    "spacing": (rewrite("t2", np.array, moved(2e-3, 1, 1)), T2 + "axes and spacing must .* got 0.0020 mm: reorient or"),
    "axes": (rewrite("t2", np.array, AFFINE @ np.diag([-1, 1, 1, 1])), T2 + "axes and spacing must agree within 0.001"),
    "origin": (rewrite("t2", np.array, moved(0.8, 1, 3)), T2 + "origins must agree within 0.5 voxel, got 0.53 voxels"),
    "affine": (rewrite("t2", np.array, FLAT), T2 + "affine must be an invertible 4x4 matrix"),
    "NaN": (rewrite("t2", first_voxel(np.nan)), T2 + "values must be finite, got 1 NaN or infinite"),
    "beyond what can be squared": (
        rewrite("t2", first_voxel(1e30)),
        T2 + "values must be within 1e.15, got .* to 1e.30",
    ),
    "infinity": (rewrite("t2", first_voxel(np.inf)), T2 + "values must be finite, got 1 NaN or infinite"),
    "colors": (rewrite("t2", colored), T2 + r"values must be real numbers, one per voxel, got \[\('R', 'u1'\)"),
    "colors of label": (rewrite("label", colored), SEG + "values must be real numbers, one per voxel, got"),
    "complex": (rewrite("t2", lambda a: a.astype(np.complex64)), T2 + "values must be real numbers, .* got complex64"),
    "zeros": (rewrite("t2", np.zeros_like), T2 + "t2 must not be empty, got zeros only"),
    "truncated": (truncate, T2 + "file must be readable, got EOFError"),
    "truncated behind the voxels": (damage("t2", lambda b: b[:-8]), T2 + "file must be readable, got EOFError"),
    "a bit of a voxel": (damage("t2", flip_a_voxel), T2 + "file must be readable, got BadGzipFile: CRC check failed"),
    "a bit of the checksum": (damage("t2", flip_the_checksum), T2 + "file must be readable, got BadGzipFile"),
    "a bit of the label": (damage("seg", flip_a_voxel), SEG + "file must be readable, got BadGzipFile"),
    "truncated, not compressed": (truncate_plain, r"p1_t2\.nii: file must be readable, got OSError"),
    "truncated MetaImage": (truncate_mha, r"p1_t2\.mha: file must be readable, got RuntimeError"),
    "no voxels": (sized(0, "p1_t2.nii.gz"), T2 + r"file must hold voxels, got a shape of \(0"),
    "fewer voxels than stated": (
        sized(9, "p1_t2.nii.gz"),
        T2 + "file must be readable, got EOFError: 1972 bytes by the header, 1792 in the file",  # 352 before the voxels
    ),
    "a side below 0": (sized(-8, "p1_t2.nii.gz"), T2 + r"file must be readable, got"),
    "a side below 0, not compressed": (sized(-8, "p1_t2.nii"), r"p1_t2\.nii: file must be readable, got OverflowError"),
    "not an image": (write_text, T2 + "file must be readable, got"),
    "other format": (use_png, r"p1_t2\.png: file must end in one of .nii.gz, .nii, .mha, got p1_t2.png"),
    "three channels": (use_4d(3), r"all\.nii\.gz: a file without siblings must be 4-D with 4 channels last, got shape"),
    "no channels": (use_3d, r"all\.nii\.gz: a file without siblings must be 4-D with 4 channels last, got shape"),
    "empty channel": (use_4d_with_an_empty_channel, r"all\.nii\.gz: t2 must not be empty, got zeros only"),
    "order": (use_4d(4, ["t1", "t1", "t2", "flair"]), r"all\.nii\.gz: order must be a permutation of .*'t1', 't1'"),
    "array": (use_array, "image must be a path or a list of four paths, got array"),
    "nowhere": (use_nowhere, r"nowhere\.nii\.gz: image must exist"),
    "empty folder": (use_empty_folder, "empty: folder must hold the sequences of one case, got no file named by"),
    "two cases": (use_two_cases, "folder must hold the sequences of one case, got p1, p2"),
    "label absent": (delete_label, SEG + "file must exist"),
    "unknown code": (rewrite("label", first_voxel(7)), SEG + r"label codes of brats2017 must be .* got \[7.0\]"),
    "negative code": (rewrite("label", first_voxel(-1)), SEG + r"label codes of brats2017 must be .* got \[-1.0\]"),
    "large code": (rewrite("label", first_voxel(257)), SEG + r"label codes of brats2017 must be .* got \[257.0\]"),
    "fraction": (rewrite("label", first_voxel(1.5)), SEG + "label codes must be whole numbers, got 1.5"),
    "shape of label": (rewrite("label", lambda a: a[1:]), SEG + r"files must share a spatial shape, got \(7, 9, 10\)"),
    "spacing of label": (rewrite("label", np.array, moved(2e-3, 1, 1)), SEG + "axes and spacing must agree"),
    "origin of label": (rewrite("label", np.array, moved(0.8, 1, 3)), SEG + "origins must agree within 0.5 voxel"),
}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: gzip.compress(content[:400]) + gzip.compress(content[400:]),
        lambda content: gzip.compress(content[:-400]) + gzip.compress(content[-400:]),
        lambda content: gzip.compress(content) + bytes(512),
        lambda content: gzip.compress(content) + gzip.compress(b"more"),
        lambda content: gzip.compress(content + b"more"),
    ],
    ids=["a short first part", "a long first part", "zeros behind", "a part behind", "bytes behind the voxels"],
)
def test_a_compressed_file_is_read_however_it_was_written(
    tmp_path: Path, arrays: Arrays, change: Callable[[bytes], bytes]
) -> None:
    path = Path(save(arrays["t2"], tmp_path / "p1_t2.nii.gz"))
    path.write_bytes(change(gzip.decompress(path.read_bytes())))
    array, affine = reading.read_file("p1", path)
    assert np.array_equal(array, arrays["t2"])
    assert np.allclose(affine, AFFINE)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_stored_integers_are_scaled_as_the_header_says(tmp_path: Path, arrays: Arrays, order: str, ending: str) -> None:
    image = nib.Nifti1Image(arrays["t2"], AFFINE, nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(f"{order}i2")
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / f"p1_t2.{ending}")
    array, _ = reading.read_file("p1", tmp_path / f"p1_t2.{ending}")
    assert np.array_equal(array, arrays["t2"] * 0.5 - 3)


@pytest.mark.parametrize("name", BAD, ids=str)
def test_a_case_that_does_not_fit_together_is_refused(tmp_path: Path, arrays: Arrays, name: str) -> None:
    spoil, rule = BAD[name]
    data = save_case(tmp_path, arrays) | {"scheme": "brats2017"}
    spoil(data, tmp_path, arrays)
    with pytest.raises(ValueError, match=f"^case p1: .*{rule}"):
        LoadCased()(data)


def test_an_order_must_name_each_sequence_once() -> None:
    with pytest.raises(ValueError, match=r"order must be a permutation of t1, t1c, t2, flair, got \['t1'\]"):
        LoadCased(order=["t1"])


def test_a_shifted_label_warns(tmp_path: Path, arrays: Arrays) -> None:
    data = save_case(tmp_path, arrays)
    save(arrays["label"], tmp_path / "p1_seg.nii.gz", moved(0.25, 0, 3))
    with pytest.warns(UserWarning, match=r"case p1: .*origins differ.*p1_seg.nii.gz by 0.250 mm$"):
        label = LoadCased()(data)["label"]
    np.testing.assert_allclose(label.affine, AFFINE)


def test_without_itk_a_metaimage_asks_for_itk(tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    data = save_mha_list(tmp_path, arrays)
    monkeypatch.setattr(reading, "optional_import", lambda name: (None, False))
    with pytest.raises(ImportError, match=r"case p1: .*MR_T1.*mha: .* pip install itk-io"):
        LoadCased()(data)


def test_a_channel_first_step_after_it_changes_nothing(tmp_path: Path, arrays: Arrays) -> None:
    data = LoadCased()(save_case(tmp_path, arrays))
    again = EnsureChannelFirstd(keys=["image", "label"])(data)
    assert again["image"].shape == (4, *SHAPE)
    assert again["label"].shape == (1, *SHAPE)


def test_spatial_transforms_are_inverted_to_the_grid_of_the_files(tmp_path: Path, arrays: Arrays) -> None:
    keys = ["image", "label"]
    steps = [
        LoadCased(),
        Orientationd(keys=keys, axcodes="RAS", labels=None),
        CropForegroundd(keys=keys, source_key="image", margin=1, allow_smaller=True),
        Spacingd(keys=keys, pixdim=(1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
    ]
    chain = Compose(steps)
    result = chain(save_case(tmp_path, arrays))
    assert result["image"].shape[1:] != SHAPE
    result["pred"] = MetaTensor(result["label"].clone())
    inverse = Invertd(keys="pred", transform=chain, orig_keys="image", nearest_interp=True, to_tensor=True)
    back = inverse(result)["pred"]
    assert back.shape == (1, *SHAPE)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-6)
    classes = np.where(arrays["label"] == 4, 3, arrays["label"])
    assert (back[0].numpy() == classes).mean() > 0.95
    SaveImage(output_dir=tmp_path / "out", output_dtype=np.uint8, separate_folder=False, print_log=False)(back)
    saved = nib.load(tmp_path / "out" / "p1_t1_trans.nii.gz")
    assert saved.shape == SHAPE
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)


def test_cases_of_different_forms_are_cached_and_batched_together(tmp_path: Path, arrays: Arrays) -> None:
    first = save_case(tmp_path / "a", arrays, "a")
    second = save_4d(tmp_path / "b", arrays) | {"case": "b", "label": first["label"]}
    dataset = CacheDataset([first, second], Compose([LoadCased()]), progress=False)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 4, *SHAPE)
    assert batch["case"] == ["a", "b"]
    torch.testing.assert_close(batch["image"][0], batch["image"][1])


def test_a_datalist_loads(tmp_path: Path, arrays: Arrays) -> None:
    for case in ("p1", "p2"):
        save_case(tmp_path / case, arrays, case)
    for case in read_cases(write_datalist(tmp_path, folds=2)):
        loaded = LoadCased()(case)
        assert (loaded["case"], loaded["image"].meta["case"]) == (case["case"],) * 2
        assert loaded["label"].max() == 3


def test_the_labels_of_a_decathlon_datalist_are_read_by_msds_codes(tmp_path: Path, arrays: Arrays) -> None:
    image = save_4d(tmp_path / "imagesTr", arrays)["image"]
    codes = np.resize(np.arange(4, dtype=np.uint8), SHAPE)  # of MSD: background, edema, NCR/NET, enhancing
    label = save(codes, tmp_path / "labelsTr" / "p1.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": image, "label": label}]}))
    (case,) = read_cases(tmp_path / "dataset.json")
    loaded = LoadCased()(case)["label"][0].numpy()
    np.testing.assert_array_equal(loaded, np.array([BACKGROUND, EDEMA, NECROSIS, ENHANCING])[codes])
    as_stated = LoadCased(scheme="brats2017")(case | {"scheme": "brats2023"})["label"][0].numpy()
    np.testing.assert_array_equal(as_stated, codes)


@pytest.mark.real_data
def test_real_origins_that_differ_by_a_third_of_a_voxel_warn(data_root: Path) -> None:
    with pytest.warns(UserWarning, match=r"case BRATS2013_HG0131: .*origins differ.*MR_T1c.3530.mha by 0.334 mm"):
        image = LoadCased()({"image": str(data_root / "unlabelled" / "BRATS2013_HG0131")})["image"]
    assert image.shape == (4, 162, 230, 230)


@pytest.mark.real_data
def test_a_real_case_of_bare_names_is_found_and_loads_in_order(data_root: Path) -> None:
    folder = data_root / "unlabelled" / "TCGA-DU-7294"
    (case,), messages = find_cases(folder)
    assert not messages
    assert case == {
        "case": "TCGA-DU-7294",
        "patient": "TCGA-DU-7294",
        "image": [str(folder / f"{sequence}.nii.gz") for sequence in SEQUENCES],
        "scheme": "brats2017",
    }
    assert LoadCased()(case)["image"].shape[0] == 4
    first, second, third, fourth = case["image"]
    with pytest.raises(ValueError, match=r"^case TCGA-DU-7294: .*t2.nii.gz: file must be t1c by its place"):
        LoadCased()({"image": [first, third, second, fourth]})


@pytest.mark.real_data
def test_real_cases_load_without_a_warning(data_root: Path) -> None:
    cases, messages = find_cases(data_root / "cases")
    assert (len(cases), messages) == (13, [])
    for case in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = LoadCased()(case)
        assert loaded["image"].shape == (4, 240, 240, 155)
        assert set(loaded["label"].unique().tolist()) <= {0, 1, 2, 3}


def test_a_missing_sequence_is_zero_and_the_first_one_there_gives_the_grid(
    phantoms: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(phantoms / "phantom_000" / f"phantom_000_{name}.nii.gz") for name in ("t1", "t1ce", "t2", "flair")]
    whole = LoadCased()({"image": files})["image"]
    image = LoadCased()({"image": [None, files[1], None, files[3]]})["image"]
    assert not image[[0, 2]].any()
    assert torch.equal(image[[1, 3]].as_tensor(), whole[[1, 3]].as_tensor())
    assert torch.equal(image.affine, whole.affine)
    assert image.meta["missing"] == "t1, t2"
    assert "case phantom_000: missing t1, t2, taken for 0 everywhere" in caplog.text
    with pytest.raises(ValueError, match="image must list t1, t1c, t2, flair, got 0 files"):
        LoadCased()({"image": [None] * 4})


def test_the_files_of_a_case_are_read_at_the_same_time(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(len(SEQUENCES), timeout=30)

    def read_file(case: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
        together.wait()  # breaks if one is read after the other
        return reading.read_file(case, file)

    case = save_list(tmp_path, arrays)
    expected = LoadCased()(case)["image"]
    monkeypatch.setattr(loading, "read_file", read_file)
    assert torch.equal(LoadCased()(case)["image"], expected)
