"""The layouts that BraTS and MSD cases come in, and finding cases by their file names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omnet_monai.regions import SCHEMES, SEQUENCES

__all__ = ["EXTENSIONS", "LAYOUTS", "Layout", "NameParts", "case_name", "find_case", "find_cases"]
__all__ += ["missing_or_twice", "name_parts", "stem"]

EXTENSIONS = (".nii.gz", ".nii", ".mha")
BARE = "a folder per case (t1 t1c t2 flair seg, or the other names above)"


@dataclass(frozen=True)
class Layout:
    """
    How one family of data sets names its files.

    Attributes:
        scheme: the label scheme, a key of ``SCHEMES``, of files whose names or extension tell no other.
        pattern: regular expression over ``<folder>/<name without extension>``, with a group ``part`` and, where the
            case is not the folder, a group ``case``.
        parts: what each ``part``, in lower case, is: a sequence, "label", or "image" for all sequences in one file.
        order: the channels of an "image".
        patient: regular expression over the case name whose first group is the patient.
    """

    scheme: str
    pattern: str
    parts: dict[str, str]
    order: tuple[str, ...] | None = None
    patient: str = "(.+)"


LAYOUTS = {
    "BraTS 2015 (.MR_T1 .MR_T1c .MR_T2 .MR_Flair .OT)": Layout(
        "brats2015",
        r"[^/]*/.*[._](?P<part>mr_t1c|mr_t1|mr_t2|mr_flair|ot)(\.\d+)?",
        {"mr_t1": "t1", "mr_t1c": "t1c", "mr_t2": "t2", "mr_flair": "flair", "ot": "label"},
    ),
    "BraTS 2017-2021 (_t1 _t1ce _t2 _flair _seg)": Layout(
        "brats2017",
        r"[^/]*/(?P<case>.+)_(?P<part>t1ce?|t1|t2|flair|segm?)",
        # BraTS 2020 has one label, that of case 355, called _Segm.
        {"t1": "t1", "t1c": "t1c", "t1ce": "t1c", "t2": "t2", "flair": "flair", "seg": "label", "segm": "label"},
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
    # BraTS 2015 keeps each file in a folder of its own name.
    folder = file.parent.parent if file.parent.name == name else file.parent
    for layout_name, layout in LAYOUTS.items():
        match = re.fullmatch(layout.pattern, f"{file.parent.name}/{name}", re.IGNORECASE)
        if match:
            part = layout.parts[match["part"].lower()]
            folder = folder.parent if layout.order else folder
            return NameParts(layout_name, folder, match.groupdict().get("case") or folder.resolve().name, part)
    return None


def find_cases(
    directory: str | Path, scheme: str | None = None, partial: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """
    Find the cases below a directory.

    Args:
        directory: where to look, with all its subfolders.
        scheme: label scheme of every case; ``None`` for that of each case's layout.
        partial: return incomplete cases too, with ``None`` for a missing sequence and what is wrong as ``"problems"``.

    Returns:
        The complete cases, sorted by name, each ``{"case", "patient", "image", "label", "scheme"}`` with ``image`` a
        list of files in the order of ``SEQUENCES``, or one 4-D file beside its ``"order"``, and without ``label`` if
        there is none; and one message per case that is left out.

    Raises:
        ValueError: for an unknown scheme, or if no file follows a known layout.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"label scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    directory = Path(directory)
    groups = _groups(Path(root, name) for root, _, names in os.walk(directory, followlinks=True) for name in names)
    if not groups:
        raise ValueError(f"{directory} must hold cases of a known layout: {'; '.join(LAYOUTS)}; found none")
    # A label map elsewhere, such as segment's own below the cases, makes no second case of its name.
    imaged = [group for group, files in groups.items() if set(files) != {"label"}]
    folders = Counter(case for case, _ in {(group.case, group.folder) for group in imaged})
    patients = {_patient(group) for group in groups if folders[group.case] > 1}
    cases, messages = [], []
    for group, files in groups.items():
        problems = missing_or_twice(files, ("image",) if LAYOUTS[group.layout].order else SEQUENCES)
        prefix, patient = _prefix(group, directory), _patient(group)
        name = f"{prefix}{group.case}" if folders[group.case] > 1 else group.case
        if problems and (not partial or set(files) <= {"label"}):
            messages.append(f"case {name} in {group.folder}: {problems}")
            continue
        # All scans of a patient get the prefix if one does: they stay together.
        entry = {"case": name, "patient": f"{prefix}{patient}" if patient in patients else patient}
        entry |= {"problems": problems} if problems else {}
        cases.append(entry | _files(group, files) | {"scheme": scheme or _scheme(group, files)})
    return cases, messages


def find_case(path: str | Path) -> tuple[str, dict[str, list[Path]], tuple[str, ...] | None]:
    """
    Find the case that one path stands for: a folder with the files of one case; a 3-D file whose siblings lie beside
    it or in ``modalities/<case>/`` below its folder, ``<case>`` being its name with or without its sequence; or a 4-D
    file, which is every file that has no siblings by these rules.

    Returns:
        The name of the case, its files by part, and the order of channels where the layout of a 4-D file tells it.

    Raises:
        ValueError: if a folder holds no case or several.
    """
    path = Path(path)
    parts = name_parts(path)
    beside = [path.parent / "modalities" / name for name in (stem(path), parts.case if parts else None) if name]
    for folder in [path] if path.is_dir() else [folder for folder in beside if folder.is_dir()]:
        groups = {group: files for group, files in _groups(folder.rglob("*")).items() if set(files) != {"label"}}
        if len(groups) != 1:
            found = ", ".join(group.case for group in groups) or f"no file named by one of {'; '.join(LAYOUTS)}"
            raise ValueError(f"{folder}: folder must hold the sequences of one case, got {found}")
        group, files = next(iter(groups.items()))
        own = {parts.part: [path]} if parts and parts.part in SEQUENCES else {}
        return group.case, own | files, LAYOUTS[group.layout].order  # the folder's copy of the file comes first
    if parts is None:
        return case_name([path]), {"image": [path]}, None
    if parts.part == "image":
        return parts.case, {"image": [path]}, LAYOUTS[parts.layout].order
    nearby = [*parts.folder.glob("*"), *parts.folder.glob(f"*/*{path.suffix}")]
    return parts.case, _groups(nearby).get(parts._replace(part=""), {}), None


def case_name(files: Sequence[Path]) -> str:
    """Name a case by the layout of its files, else by what their names begin with alike, else by their folder."""
    parts = name_parts(files[0]) if files else None
    if parts or not files:
        return parts.case if parts else "unknown"
    common = os.path.commonprefix([stem(file) or file.name for file in files])  # noqa: RUF071 (characters are meant)
    return common.rstrip("_-. ") or files[0].resolve().parent.name


def missing_or_twice(files: dict[str, list[Path]], needed: Iterable[str] = SEQUENCES) -> str:
    """Say which parts of a case are missing and which are there twice; empty if it is complete."""
    absent = [part for part in needed if part not in files]
    problems = [f"missing {', '.join(absent)}"] if absent else []
    problems += [f"{part} twice: {', '.join(map(str, found))}" for part, found in files.items() if len(found) > 1]
    return "; ".join(problems)


def _groups(files: Iterable[Path]) -> dict[NameParts, dict[str, list[Path]]]:
    """Gather the files of each case by part; the keys have no part, and come sorted by case."""
    groups: dict[NameParts, dict[str, list[Path]]] = {}
    for file in sorted(files):
        parts = name_parts(file)
        if parts is not None:
            groups.setdefault(parts._replace(part=""), {}).setdefault(parts.part, []).append(file)
    # BraTS 2020's case 355 has a label with a name of its own, *_Segm, and 2015's *_OT may lie beside *_T1: such a
    # label belongs to the only case of its folder.
    labels = {group: parts["label"][0].name for group, parts in groups.items() if "label" in parts}
    for lone in [group for group, name in labels.items() if re.search(r"_(segm|ot)\.", name, re.IGNORECASE)]:
        others = [group for group in groups if group != lone and group.folder == lone.folder and group.layout != BARE]
        if set(groups[lone]) == {"label"} and len(others) == 1 and "label" not in groups[others[0]]:
            groups[others[0]] |= groups.pop(lone)
    return dict(sorted(groups.items(), key=lambda item: (item[0].case, item[0])))


def _prefix(group: NameParts, directory: Path) -> str:
    """The folders that tell a case from one of the same name: BraTS 2015's HGG and LGG share some."""
    folders = Path(os.path.relpath(group.folder, directory)).parts
    return "".join(f"{folder}_" for folder in (folders[:-1] if folders[-1:] == (group.case,) else folders))


def _patient(group: NameParts) -> str:
    match = re.fullmatch(LAYOUTS[group.layout].patient, group.case)
    return match[1] if match else group.case


def _scheme(group: NameParts, files: dict[str, list[Path]]) -> str:
    """Label scheme of a case: BraTS 2015 alone came as MetaImage; of bare names, t1n, t2w and t2f are of 2023."""
    layout, names = LAYOUTS[group.layout], [found[0].name.lower() for found in files.values()]
    if layout.order is None and any(name.endswith(".mha") for name in names):
        return "brats2015"
    of_2023 = group.layout == BARE and any(name.startswith(("t1n.", "t2w.", "t2f.")) for name in names)
    return "brats2023" if of_2023 else layout.scheme


def _files(group: NameParts, files: dict[str, list[Path]]) -> dict[str, Any]:
    order = LAYOUTS[group.layout].order
    label = {"label": str(files["label"][0])} if "label" in files else {}
    if order:
        return {"image": str(files["image"][0]), "order": list(order)} | label
    return {"image": [str(files[part][0]) if part in files else None for part in SEQUENCES]} | label
