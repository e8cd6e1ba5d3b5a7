"""Cases are found by their file names alone: files here are empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omnet_monai.finding import find_case, find_cases, require_names
from omnet_monai.folders import files_below, left_aside
from omnet_monai.layouts import LAYOUTS, case_name, label_scheme, name_parts
from omnet_monai.regions import SCHEMES, SEQUENCES

VSD = "VSD.Brain.XX.O"
# Files of one complete case below a folder: t1, t1c, t2, flair, label.
FILES = {
    "2015, a folder per file": [
        f"HGG/pat1/{name}/{name}.mha"
        for name in (f"{VSD}.MR_T1.11", f"{VSD}.MR_T1c.12", f"{VSD}.MR_T2.13", f"{VSD}.MR_Flair.14")
    ]
    + ["HGG/pat1/VSD.Brain_3more.XX.O.OT.15/VSD.Brain_3more.XX.O.OT.15.mha"],
    "2015, one folder": [f"pat1/{VSD}.{part}.1.mha" for part in ("MR_T1", "MR_T1c", "MR_T2", "MR_Flair", "OT")],
    "2017": [f"HGG/pat1/pat1_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "2020, not compressed": [f"pat1/pat1_{part}.nii" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "2017, all in one folder": [f"pat1_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "2017, t1c for t1ce": [f"pat1/pat1_{part}.nii.gz" for part in ("t1", "t1c", "t2", "flair", "seg")],
    "2017, names of UPENN-GBM": [f"pat1/pat1_{part}.nii.gz" for part in ("T1", "T1GD", "T2", "FLAIR", "segm")],
    "2017, names of RHUH-GBM": [f"pat1/pat1_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "segmentations")],
    "2017, names of UCSF-PDGM": [
        f"pat1_nifti/pat1_{part}.nii.gz" for part in ("T1", "T1c", "T2", "FLAIR", "tumor_segmentation")
    ],
    "2020, a folder per file": [f"p/pat1_{part}.nii/pat1_{part}.nii" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "2017, bare": [f"pat1/{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "2017, bare, t1c for t1ce": [f"pat1/{part}.nii.gz" for part in ("t1", "t1c", "t2", "flair", "seg")],
    "2017, bare, a folder per file": [f"pat1/{part}/{part}.nii" for part in ("t1", "t1c", "t2", "flair", "seg")],
    "2023": [f"pat1/pat1-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f", "seg")],
    "2023, bare": [f"pat1/{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f", "seg")],
    "2015, names of 2017": [f"pat1/pat1_{part}.mha" for part in ("T1", "T1c", "T2", "Flair", "seg")],
    "2015, names of 2017, label of 2015": [f"pat1/pat1_{part}.mha" for part in ("T1", "T1c", "T2", "Flair", "OT")],
    "2015, names of 2023": [f"pat1/pat1-{part}.mha" for part in ("t1n", "t1c", "t2w", "t2f", "seg")],
    "2015, bare": [f"pat1/{part}.mha" for part in ("T1", "T1c", "T2", "Flair", "seg")],
}
SCHEME = {name: f"brats{name[:4].replace('2020', '2017')}" for name in FILES}


def touch(root: Path, files: list[str]) -> list[str]:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return [str(root / file) for file in files]


def test_every_layout_has_a_scheme_of_the_table_and_all_parts() -> None:
    assert {layout.scheme for layout in LAYOUTS.values()} == set(SCHEMES)
    for layout in LAYOUTS.values():
        assert set(layout.parts.values()) == ({"image"} if layout.order else set(SEQUENCES)) | {"label"}


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_complete_case_is_found_with_its_files_in_the_order_of_the_sequences(tmp_path: Path, name: str) -> None:
    *image, label = touch(tmp_path, FILES[name])
    cases, messages = find_cases(tmp_path)
    case = {"case": "pat1", "patient": "pat1", "image": image, "label": label, "scheme": SCHEME[name]}
    assert cases == [case]
    assert not messages


def test_sessions_of_bids_are_cases_of_one_patient_and_a_contrast_makes_the_t1c(tmp_path: Path) -> None:
    for session in ("sub-02_ses-1", "sub-02_ses-2"):
        names = ("T1w", "ce-gadolinium_run-1_T1w", "acq-tse_T2w", "ce-gadolinium_FLAIR", "dseg")
        folder = session.replace("_", "/")
        *image, label = touch(tmp_path, [f"{folder}/anat/{session}_{name}.nii.gz" for name in names])
        touch(tmp_path, [f"{folder}/anat/{session}_desc-brain_mask.nii.gz", f"{folder}/dwi/{session}_dwi.nii.gz"])
    cases, messages = find_cases(tmp_path)
    assert [(case["case"], case["patient"]) for case in cases] == [("sub-02_ses-1", "sub-02"), (session, "sub-02")]
    assert (cases[1]["image"], cases[1]["label"]) == (image, label)
    assert not messages


@pytest.mark.parametrize("name", ["sub-01_t1ce", "sub-01_T1GD", "Sub-01_CE-Gd_T1w", "sub-01_space-T2w_ce-gd_T1w"])
def test_a_contrast_enhanced_t1_of_bids_is_told_by_either_way_of_naming(name: str) -> None:
    parts = name_parts(f"anat/{name}.nii.gz")
    assert parts is not None
    assert (parts.case.lower(), parts.part) == ("sub-01", "t1c")


def test_bids_patients_may_have_files_named_as_in_brats(tmp_path: Path) -> None:
    names = ("t1", "t1ce", "t2", "flair", "tumor_segmentation")
    *image, label = touch(tmp_path, [f"sub-7/sub-7_{name}.nii.gz" for name in names])
    ((case,), messages) = find_cases(tmp_path)
    assert (case["image"], case["label"], case["scheme"], messages) == (image, label, "brats2017", [])


def test_folders_with_images_of_no_layout_are_told_with_one_of_their_files(tmp_path: Path) -> None:
    touch(tmp_path, [*FILES["2017"], "HGG/pat1/adc.nii.gz", "notes/read.txt"])
    touch(tmp_path, ["p2/all.nii.gz", "p2/b/more.nii", *(f"p3/T1/IM000{number}.DCM" for number in (1, 2, 3))])
    told = [
        f"{tmp_path / 'p2'}: all.nii.gz and 1 more: named by no layout",
        f"{tmp_path / 'p3'}: T1/IM0001.DCM and 2 more: DICOM is not read: convert it to NIfTI",
    ]
    assert find_cases(tmp_path)[1] == told
    assert not find_cases(tmp_path, partial=True)[1]
    assert left_aside(tmp_path, files_below(tmp_path), limit=1) == [told[0], "1 more folders like these"]


def test_msd_cases_are_found_with_their_order_and_without_macos_leftovers(tmp_path: Path) -> None:
    files = ["imagesTr/BRATS_001.nii.gz", "imagesTr/._BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"]
    image, _, label = touch(tmp_path, files)
    (test,) = touch(tmp_path, ["imagesTs/BRATS_485.nii.gz"])
    cases, messages = find_cases(tmp_path)
    shared = {"order": ["flair", "t1", "t1c", "t2"], "scheme": "msd"}
    assert cases == [
        {"case": "BRATS_001", "patient": "BRATS_001", "image": image, "label": label} | shared,
        {"case": "BRATS_485", "patient": "BRATS_485", "image": test} | shared,
    ]
    assert not messages


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_case_without_a_sequence_is_told_and_does_not_stop_the_others(tmp_path: Path, name: str) -> None:
    touch(tmp_path, FILES[name])
    others = [file.replace("pat1", "pat2") for file in FILES[name]]
    touch(tmp_path, others[:2] + others[3:])
    if name == "2015, a folder per file":
        assert (tmp_path / "HGG" / "pat2").is_dir()
    cases, messages = find_cases(tmp_path)
    assert [case["case"] for case in cases] == ["pat1"]
    assert len(messages) == 1
    assert messages[0].startswith("case pat2 in ")
    assert messages[0].endswith("missing t2")


@pytest.mark.parametrize("folder", [".", ""], ids=["dot", "nothing"])
def test_msd_cases_are_found_from_inside_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (image,) = touch(tmp_path, ["imagesTs/BRATS_485.nii.gz"])
    monkeypatch.chdir(tmp_path / "imagesTs")
    assert [case["image"] for case in find_cases(folder)[0]] == [image]


def test_the_files_of_nnunet_are_told_and_not_taken_for_msd_cases(tmp_path: Path) -> None:
    touch(tmp_path, [f"imagesTr/BRATS_001_000{channel}.nii.gz" for channel in range(4)])
    cases, messages = find_cases(tmp_path)
    name = "its name is nnU-Net's for one channel of four, not MSD's"
    assert (cases, messages) == ([], [f"case BRATS_001_000{channel} in {tmp_path}: {name}" for channel in range(4)])
    assert [case["problems"] for case in find_cases(tmp_path, partial=True)[0]] == [name] * 4


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"], ids=["three files", "labels of their own"])
def test_msd_cases_may_be_numbered_with_four_digits(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, [f"{name}/p_000{number}.nii.gz" for name in ("imagesTr", folder) for number in (1, 2, 3)])
    touch(tmp_path, [f"{name}/p_0000.nii.gz" for name in ("imagesTr", folder) if folder != "imagesTr"])
    assert len(find_cases(tmp_path)[0]) == (3 if folder == "imagesTr" else 4)


def test_an_msd_label_without_its_image_is_told(tmp_path: Path) -> None:
    touch(tmp_path, ["labelsTr/BRATS_001.nii.gz"])
    assert find_cases(tmp_path) == ([], [f"case BRATS_001 in {tmp_path}: missing image"])


def test_a_sequence_there_twice_is_told_with_both_files(tmp_path: Path) -> None:
    files = touch(tmp_path, [*FILES["2017"], FILES["2017"][0].removesuffix(".gz")])
    cases, messages = find_cases(tmp_path)
    assert not cases
    assert messages == [f"case pat1 in {tmp_path / 'HGG/pat1'}: t1 twice: {files[-1]}, {files[0]}"]


def test_a_case_without_a_label_has_no_label_key(tmp_path: Path) -> None:
    touch(tmp_path, FILES["2017"][:4])
    assert "label" not in find_cases(tmp_path)[0][0]


def test_the_argument_overrides_the_scheme_of_the_layout(tmp_path: Path) -> None:
    touch(tmp_path, FILES["2017"])
    assert find_cases(tmp_path, scheme="brats2023")[0][0]["scheme"] == "brats2023"


def test_the_label_of_brats_2020_case_355_is_found_under_its_odd_name(tmp_path: Path) -> None:
    files = [f"pat355/pat355_{part}.nii" for part in ("t1", "t1ce", "t2", "flair")]
    *_, label = touch(tmp_path, [*files, "pat355/W39_1998.09.19_Segm.nii"])
    cases, messages = find_cases(tmp_path)
    assert [case["label"] for case in cases] == [label]
    assert not messages


def test_a_prediction_beside_a_case_is_not_taken_for_its_label(tmp_path: Path) -> None:
    touch(tmp_path, [*FILES["2017"][:4], "HGG/pat1/pat1_t1_seg.nii.gz"])
    cases, messages = find_cases(tmp_path)
    assert "label" not in cases[0]
    assert len(messages) == 1
    assert find_case(tmp_path)[0] == "pat1"


@pytest.mark.parametrize(
    ("case", "patient"),
    [("BraTS-GLI-00005-100", "BraTS-GLI-00005"), ("BraTS-MET-00001-000", "BraTS-MET-00001"), ("case7", "case7")],
    ids=["second time point", "first time point", "other name"],
)
def test_scans_of_one_patient_at_several_times_share_the_patient(tmp_path: Path, case: str, patient: str) -> None:
    touch(tmp_path, [file.replace("pat1", case) for file in FILES["2023"]])
    assert [(entry["case"], entry["patient"]) for entry in find_cases(tmp_path)[0]] == [(case, patient)]


@pytest.mark.parametrize("layout", ["2015, a folder per file", "2017"], ids=str)
@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("brats_tcia_pat153_0002", "brats_tcia_pat153"),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
        ("RHUH-0001_0", "RHUH-0001"),
        ("brats_2013_pat0001_1", "brats_2013_pat0001_1"),
        ("Brats17_TCIA_105_1", "Brats17_TCIA_105_1"),
    ],
    ids=str,
)
def test_names_of_known_series_before_2023_tell_the_patient(
    tmp_path: Path, layout: str, case: str, patient: str
) -> None:
    touch(tmp_path, [file.replace("pat1", case) for file in FILES[layout]])
    assert [(entry["case"], entry["patient"]) for entry in find_cases(tmp_path)[0]] == [(case, patient)]


def test_rival_labels_beside_bare_names_are_neither_sequences_nor_labels(tmp_path: Path) -> None:
    image = touch(tmp_path, FILES["2017, bare, t1c for t1ce"][:4])
    rivals = ["alg_isen-20.nii.gz", "alg_hnfnetv1-20.nii.gz", "fusion_mav.nii.gz", "fusion_simple.nii.gz"]
    touch(tmp_path, [f"pat1/{file}" for file in rivals])
    assert find_cases(tmp_path) == ([{"case": "pat1", "patient": "pat1", "image": image, "scheme": "brats2017"}], [])
    assert [name_parts(file) for file in rivals] == [None] * 4


@pytest.mark.parametrize("rival", ["alg_seg", "fusion_segm", "fusion_t1"], ids=str)
def test_a_rival_named_as_a_part_is_told_and_does_not_join_a_case_of_bare_names(tmp_path: Path, rival: str) -> None:
    image = touch(tmp_path, FILES["2017, bare"][:4])
    touch(tmp_path, [f"pat1/{rival}.nii.gz"])
    cases, messages = find_cases(tmp_path)
    assert cases == [{"case": "pat1", "patient": "pat1", "image": image, "scheme": "brats2017"}]
    assert [message.split(" in ")[0] for message in messages] == [f"case {rival.split('_')[0]}"]


def test_a_bare_label_beside_a_case_does_not_change_its_name(tmp_path: Path) -> None:
    touch(tmp_path, [*FILES["2017"][:4], "HGG/pat1/seg.nii.gz"])
    cases, messages = find_cases(tmp_path)
    assert [(case["case"], "label" in case) for case in cases] == [("pat1", False)]
    assert len(messages) == 1


def test_an_msd_case_with_the_name_of_a_sequence_is_an_msd_case(tmp_path: Path) -> None:
    touch(tmp_path, ["imagesTr/t1n.nii.gz", "imagesTr/t2.mha"])
    assert [(case["case"], case["scheme"]) for case in find_cases(tmp_path)[0]] == [("t1n", "msd"), ("t2", "msd")]


def test_cases_of_one_name_in_two_folders_are_two_patients(tmp_path: Path) -> None:
    for folder in ("HGG", "LGG"):
        touch(tmp_path, [file.replace("HGG", folder) for file in FILES["2015, a folder per file"]])
    touch(tmp_path, [file.replace("pat1", "pat2") for file in FILES["2015, a folder per file"]])
    pairs = [(case["case"], case["patient"]) for case in find_cases(tmp_path)[0]]
    assert pairs == [("HGG_pat1", "HGG_pat1"), ("LGG_pat1", "LGG_pat1"), ("pat2", "pat2")]


def test_a_label_map_of_the_same_name_elsewhere_makes_no_second_case(tmp_path: Path) -> None:
    touch(tmp_path, [f"HGG/p1/p1_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")])
    touch(tmp_path, ["segmented/p1_seg.nii.gz"])
    (case,), messages = find_cases(tmp_path)
    assert (case["case"], case["patient"]) == ("p1", "p1")
    assert case["label"] == str(tmp_path / "HGG" / "p1" / "p1_seg.nii.gz")
    assert len(messages) == 1


def test_all_scans_of_a_patient_stay_together_where_one_of_them_shares_its_name(tmp_path: Path) -> None:
    for case in ("a/P-00001-000", "b/P-00001-000", "a/P-00001-001", "b/P-00002-000"):
        touch(tmp_path, [f"{case}/{file.split('/')[1].replace('pat1', case[2:])}" for file in FILES["2023"]])
    assert {case["case"]: case["patient"] for case in find_cases(tmp_path)[0]} == {
        "a_P-00001-000": "a_P-00001",
        "b_P-00001-000": "b_P-00001",
        "P-00001-001": "a_P-00001",
        "P-00002-000": "P-00002",
    }


def test_cases_of_one_name_in_two_folders_get_the_folder_in_their_names(tmp_path: Path) -> None:
    touch(tmp_path, FILES["2015, a folder per file"])
    touch(tmp_path, [file.replace("HGG", "LGG") for file in FILES["2015, a folder per file"]])
    touch(tmp_path, [file.replace("HGG/pat1/", "extra/") for file in FILES["2017"]])
    assert [case["case"] for case in find_cases(tmp_path)[0]] == ["HGG_pat1", "LGG_pat1", "extra_pat1"]


def test_what_is_found_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case, folder in (("pat3", "b"), ("pat1", "z"), ("pat2", "a")):
        touch(tmp_path / folder, [file.replace("pat1", case) for file in FILES["2017"]])
    touch(tmp_path, ["twice/pat4_t1.nii", "twice/pat4_t1.nii.gz"])
    found = find_cases(tmp_path)
    assert [case["case"] for case in found[0]] == ["pat1", "pat2", "pat3"]
    walk = os.walk
    for reverse in (False, True):
        monkeypatch.setattr(
            os, "walk", lambda *args, r=reverse, **kw: [(a, b, sorted(c, reverse=r)) for a, b, c in walk(*args, **kw)]
        )
        assert find_cases(tmp_path) == found


def test_linked_case_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store", FILES["2017"])
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset" / "pat1").symlink_to(tmp_path / "store" / "HGG" / "pat1")
    assert [case["case"] for case in find_cases(tmp_path / "subset")[0]] == ["pat1"]


def test_a_folder_without_cases_is_an_error_that_names_it_and_the_layouts(tmp_path: Path) -> None:
    touch(tmp_path, ["notes.txt", "image.nii.gz"])
    with pytest.raises(ValueError, match=rf"{tmp_path.name} must hold cases .*_t1ce.*-t1n.*imagesTr.*found none"):
        find_cases(tmp_path)


def test_an_unknown_scheme_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label scheme must be one of brats2015, .*got 'brats1999'"):
        find_cases(tmp_path, scheme="brats1999")


@pytest.mark.parametrize(
    "file", ["caset1.nii.gz", "case.nii.gz", "case_t1.txt", "._case_t1.nii.gz", "case_t1cd.nii.gz", "segm.nii"], ids=str
)
def test_a_name_of_no_layout_tells_nothing(file: str) -> None:
    assert name_parts(file) is None


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_folder_and_each_of_its_files_stand_for_one_case(tmp_path: Path, name: str) -> None:
    files = touch(tmp_path, FILES[name])
    expected = {part: [Path(file)] for part, file in zip([*SEQUENCES, "label"], files, strict=True)}
    for path in (tmp_path, *files[:4]):
        assert find_case(path) == ("pat1", expected, None)


def test_an_msd_file_brings_its_order(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, ["imagesTs/BRATS_485.nii.gz"])
    assert find_case(image) == ("BRATS_485", {"image": [Path(image)]}, ("flair", "t1", "t1c", "t2"))


def test_a_file_of_no_layout_stands_for_itself(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, ["scan.nii.gz"])
    assert find_case(image) == ("scan", {"image": [Path(image)]}, None)


@pytest.mark.parametrize("viewable", ["pat1.nii.gz", "pat1_flair.nii.gz"], ids=["own name", "with its sequence"])
def test_siblings_are_found_in_the_folder_of_modalities(tmp_path: Path, viewable: str) -> None:
    files = touch(tmp_path, [f"modalities/pat1/{Path(file).name}" for file in FILES["2017"][:4]])
    touch(tmp_path, [viewable, "pat2.nii.gz", "modalities/pat2/pat2_t1.nii.gz"])
    case, found, _ = find_case(tmp_path / viewable)
    assert case == "pat1"
    assert found == {sequence: [Path(file)] for sequence, file in zip(SEQUENCES, files, strict=True)}


def test_a_viewable_file_is_its_own_sequence_where_the_folder_lacks_it(tmp_path: Path) -> None:
    touch(tmp_path, ["pat1_flair.nii.gz", *(f"modalities/pat1/{Path(file).name}" for file in FILES["2017"][:3])])
    _, found, _ = find_case(tmp_path / "pat1_flair.nii.gz")
    assert found["flair"] == [tmp_path / "pat1_flair.nii.gz"]
    assert set(found) == set(SEQUENCES)


def test_a_folder_of_two_cases_stands_for_none(tmp_path: Path) -> None:
    touch(tmp_path, FILES["2017"] + [file.replace("pat1", "pat2") for file in FILES["2017"]])
    with pytest.raises(ValueError, match="folder must hold the sequences of one case, got pat1, pat2"):
        find_case(tmp_path)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["a/p1_t1.nii.gz", "a/p1_t1ce.nii.gz"], "p1"),
        (["a/p1_T1w.nii.gz", "a/p1_FL.nii.gz"], "p1"),
        (["a/t1.nii.gz", "a/flair.nii.gz"], "a"),
        (["a/T1w.nii.gz", "a/FL.nii.gz"], "a"),
        ([], "unknown"),
    ],
    ids=["layout", "common start", "layout of bare names", "folder", "no file"],
)
def test_a_case_is_named_by_its_files(files: list[str], name: str) -> None:
    assert case_name([Path(file) for file in files]) == name


def test_a_case_bears_the_name_of_the_link_not_of_what_it_leads_to(tmp_path: Path) -> None:
    touch(tmp_path / "store", [f"anat/{part}.nii.gz" for part in ("t1", "t1c", "t2", "flair")])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "patient07").symlink_to(tmp_path / "store" / "anat")
    (case,), _ = find_cases(tmp_path / "study")
    assert (case["case"], case["patient"]) == ("patient07", "patient07")
    assert case_name([tmp_path / "study" / "patient07" / f"{name}.nii.gz" for name in ("T1w", "FL")]) == "patient07"


def test_a_link_that_leads_back_and_one_to_a_folder_beside_make_no_second_case(tmp_path: Path) -> None:
    touch(tmp_path, [f"b/p1/{part}.nii.gz" for part in ("t1", "t1c", "t2", "flair")])
    (tmp_path / "b" / "p1" / "back").symlink_to(tmp_path)
    (tmp_path / "b" / "a").symlink_to(tmp_path / "b" / "p1")
    assert [case["case"] for case in find_cases(tmp_path)[0]] == ["p1"]


def test_a_folder_that_is_absent_or_cannot_be_read_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"none must be a folder of cases, got a path without one"):
        find_cases(tmp_path / "none")
    touch(tmp_path, FILES["2017"])
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("pat1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    problem = f"{tmp_path / 'HGG' / 'pat1'}: the folder cannot be read: Permission denied"
    with pytest.raises(ValueError, match=f"found none; {problem}"):
        find_cases(tmp_path)
    others = [file.replace("pat1", "pat2") for file in FILES["2017"]]
    touch(tmp_path, others)
    (case,), (message,) = find_cases(tmp_path)
    assert (case["case"], message) == ("pat2", problem)
    locked_case, other = find_cases(tmp_path, partial=True)[0]
    assert (locked_case["case"], other["case"]) == (f"{tmp_path.name}_HGG_pat1_unreadable", "pat2")
    assert locked_case["problems"] == problem
    (alone,) = find_cases(tmp_path / "HGG" / "pat1", partial=True)[0]
    assert (alone["case"], alone["problems"]) == ("pat1_unreadable", problem)


def test_all_below_the_first_folder_is_one_patient_where_names_are_bare(tmp_path: Path) -> None:
    scans = ("p1/ses1", "p1/ses2", "p2/ses1", "p3")
    touch(tmp_path, [f"{scan}/{part}.nii.gz" for scan in scans for part in ("t1", "t1c", "t2", "flair")])
    assert {case["case"]: case["patient"] for case in find_cases(tmp_path)[0]} == {
        "p1_ses1": "p1",
        "ses2": "p1",
        "p2_ses1": "p2",
        "p3": "p3",
    }


@pytest.mark.parametrize(
    ("file", "scheme"),
    [
        ("labelsTr/a.nii.gz", "msd"),
        ("a/a-seg.nii.gz", "brats2023"),
        ("a/VSD.Brain_3more.XX.O.OT.1.nii", "brats2015"),
        ("a/a_seg.mha", "brats2015"),
        ("a/a_seg.nii.gz", None),
        ("a/seg.nii.gz", None),
        ("a/truth.nii.gz", None),
        ("labels/final/a-t1c.nii.gz", None),
    ],
    ids=str,
)
def test_the_name_of_a_label_map_tells_its_scheme_unless_it_is_anybodys(file: str, scheme: str | None) -> None:
    assert label_scheme(Path(file)) == scheme


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"case": "p", "image": "a"}, {"case": "p", "image": "b"}], "got p twice: a and b$"),
        ([{"image": "sub-01/x.nii.gz"}, {"image": "sub-02/x.nii.gz"}], r"got x twice: .*sub-02/x.nii.gz; an entry may"),
        ([{"image": [f"{n}/anat_T1w.nii", f"{n}/anat_FL.nii"]} for n in "ab"], "got anat twice: .*b/anat_FL"),
    ],
    ids=["stated", "4-D files", "lists of files"],
)
def test_two_cases_of_one_name_are_refused_and_both_are_named(entries: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=f"cases of x must have names of their own, {message}"):
        require_names(entries, " of x")
    require_names([entry | {"case": str(number)} for number, entry in enumerate(entries)])


@pytest.mark.parametrize("name", ["HGG/p", "../p"], ids=str)
def test_a_case_whose_name_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"cases of x must have names that a file can have, got {name}$"):
        require_names([{"case": name, "image": "a"}], " of x")
