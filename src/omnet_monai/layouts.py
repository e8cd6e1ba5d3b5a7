"""The layouts that BraTS and MSD cases come in, and what a file name tells by them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["BARE", "EXTENSIONS", "LAYOUTS", "Layout", "NameParts", "case_name", "label_scheme", "name_parts", "stem"]

EXTENSIONS = (".nii.gz", ".nii", ".mha")
BARE = "a folder per case (t1 t1c t2 flair seg, or the other names above)"
"""The layout whose names tell no case."""

SEGMENTATIONS = ("seg", "segm", "segmentations", "tumor_segmentation")


@dataclass(frozen=True)
class Layout:
    """
    How one family of data sets names its files.

    Attributes:
        scheme: the label scheme, a key of ``SCHEMES``, of files whose names or extension tell no other.
        pattern: regular expression over ``<folder>/<name without extension>``, with a group ``part`` and, where the
            case is not the folder, a group ``case``. A group ``contrast`` makes a T1 a T1c.
        parts: what each ``part``, in lower case, is: a sequence, "label", or "image" for all sequences in one file.
        order: the channels of an "image".
        patient: regular expression over the case name whose first group is the patient; others are whole.
    """

    scheme: str
    pattern: str
    parts: dict[str, str]
    order: tuple[str, ...] | None = None
    patient: str = r"((?:brats_tcia_pat|UPENN-GBM-|RHUH-)\d+)_\d+"  # the last number is the visit


LAYOUTS = {
    "BraTS 2015 (.MR_T1 .MR_T1c .MR_T2 .MR_Flair .OT)": Layout(
        "brats2015",
        r"[^/]*/.*[._](?P<part>mr_t1c|mr_t1|mr_t2|mr_flair|ot)(\.\d+)?",
        {"mr_t1": "t1", "mr_t1c": "t1c", "mr_t2": "t2", "mr_flair": "flair", "ot": "label"},
    ),
    "BIDS (sub-01_T1w sub-01_ce-gadolinium_T1w sub-01_T2w sub-01_FLAIR)": Layout(
        "brats2017",  # BIDS has no codes of its own
        r"[^/]*/(?P<case>sub-[^_]+(_ses-[^_]+)?)((?P<contrast>_ce-[^_]+)|_[a-z]+-[^_]+)*"
        r"_(?P<part>t1ce?|t1gd|t1w?|t2w?|flair|dseg|segm?|segmentations|tumor_segmentation)",
        {"t1": "t1", "t1w": "t1", "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t2": "t2", "t2w": "t2", "flair": "flair"}
        | dict.fromkeys(("dseg", *SEGMENTATIONS), "label"),
        patient=r"(sub-[^_]+).*",
    ),
    "BraTS 2017-2021 (_t1 _t1ce _t2 _flair _seg)": Layout(
        "brats2017",
        r"[^/]*/(?P<case>.+)_(?P<part>t1ce?|t1gd|t1|t2|flair|segm?|segmentations|tumor_segmentation)",
        # UPENN-GBM has _T1GD and _segm, as the label of BraTS 2020's case 355; RHUH-GBM and UCSF-PDGM the last two.
        {"t1": "t1", "t1c": "t1c", "t1ce": "t1c", "t1gd": "t1c", "t2": "t2", "flair": "flair"}
        | dict.fromkeys(SEGMENTATIONS, "label"),
    ),
    "BraTS 2023 and later (-t1n -t1c -t2w -t2f -seg)": Layout(
        "brats2023",
        r"[^/]*/(?P<case>.+)-(?P<part>t1n|t1c|t2w|t2f|seg)",
        {"t1n": "t1", "t1c": "t1c", "t2w": "t2", "t2f": "flair", "seg": "label"},
        patient=r"(.+?)(-\d{3})?",  # BraTS-GLI-00005-100: the last number is the time point
    ),
    "MSD Task01 (imagesTr imagesTs labelsTr)": Layout(
        "msd",
        r"(?P<part>imagestr|imagests|labelstr)/(?P<case>.+)",
        {"imagestr": "image", "imagests": "image", "labelstr": "label"},
        order=("flair", "t1", "t1c", "t2"),
    ),
    # One layout for the bare names of 2017 and 2023, which share t1c and seg.
    BARE: Layout(
        "brats2017",
        r"[^/]*/(?P<part>t1ce?|t1n?|t2[wf]?|flair|seg)",
        {"t1": "t1", "t1n": "t1", "t1c": "t1c", "t1ce": "t1c", "t2": "t2", "t2w": "t2", "t2f": "flair"}
        | {"flair": "flair", "seg": "label"},
    ),
}
"""Every layout we know. The first whose pattern matches a file is the file's."""


class NameParts(NamedTuple):
    """What a file name tells: its layout (a key of ``LAYOUTS``), the folder of its case, the case, its part."""

    layout: str
    folder: Path
    case: str
    part: str


def stem(file: Path) -> str | None:
    """Name of an image file without its extension; ``None`` if it is no image file."""
    for extension in EXTENSIONS:
        if file.name.lower().endswith(extension) and not file.name.startswith("."):  # macOS leaves ._ files
            return file.name[: -len(extension)]
    return None


def name_parts(file: str | Path) -> NameParts | None:
    """Read a file's name by the rules of ``LAYOUTS``; ``None`` if it follows none of them."""
    file = Path(file)
    name = stem(file)
    if name is None:
        return None
    # BraTS 2015 keeps each file in a folder of its own name, some copies of 2020 with the extension.
    folder = file.parent.parent if name in (file.parent.name, stem(file.parent)) else file.parent
    for layout_name, layout in LAYOUTS.items():
        match = re.fullmatch(layout.pattern, f"{file.parent.name}/{name}", re.IGNORECASE)
        if match:
            part = layout.parts[match["part"].lower()]
            part = "t1c" if part == "t1" and match.groupdict().get("contrast") else part
            folder = folder.parent if layout.order else folder
            # abspath follows no link: what a link leads to may have a name that tells nothing.
            case = match.groupdict().get("case") or Path(os.path.abspath(folder)).name
            return NameParts(layout_name, folder, case, part)
    return None


def case_name(files: Sequence[Path]) -> str:
    """Name a case by the layout of its files, else by what their names begin with alike, else by their folder."""
    parts = name_parts(files[0]) if files else None
    if parts or not files:
        return parts.case if parts else "unknown"
    common = os.path.commonprefix([stem(file) or file.name for file in files])  # noqa: RUF071 (characters are meant)
    return common.rstrip("_-. ") or Path(os.path.abspath(files[0])).parent.name


def label_scheme(file: Path) -> str | None:
    """Tell the scheme of a label map by its name; ``None`` for ``_seg``, bare and other names, which any may have."""
    parts = name_parts(file)
    if parts is None or parts.part != "label":  # MONAI Label names it after a sequence
        return None
    layout = LAYOUTS[parts.layout]
    if file.name.lower().endswith(".mha") and layout.order is None:
        return "brats2015"
    return None if layout.scheme == "brats2017" else layout.scheme
