"""Find the cases below a directory, or the one that a path stands for, by the names of their files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from itertools import filterfalse
from pathlib import Path
from typing import Any

from omnet_monai.folders import files_below, left_aside
from omnet_monai.layouts import BARE, LAYOUTS, NameParts, case_name, name_parts, stem
from omnet_monai.regions import SCHEMES, SEQUENCES

__all__ = ["find_case", "find_cases", "image_name", "missing_or_twice", "require_case", "require_names"]


def find_cases(
    directory: str | Path, scheme: str | None = None, partial: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """
    Find the cases below a directory.

    Args:
        directory: where to look, with all its subfolders.
        scheme: label scheme of every case; ``None`` for that of each case's layout.
        partial: return incomplete cases too, with ``None`` for a missing sequence; ``"missing"`` says which those are,
            ``"problems"`` which files are there twice. Labels do not count, and a folder that cannot be read is a case
            with that problem.

    Returns:
        The complete cases, sorted by name, each ``{"case", "patient", "image", "label", "scheme"}`` with ``image`` a
        list of files in the order of ``SEQUENCES``, or one 4-D file beside its ``"order"``, and without ``label`` if
        there is none; and one message per case that is left out, or folder that holds none of a known layout.

    Raises:
        ValueError: for an unknown scheme, if the directory does not exist, or if no file follows a known layout.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"label scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    directory = Path(os.path.abspath(directory))  # from inside imagesTr too, whose name tells the layout
    if not directory.is_dir():
        raise ValueError(f"{directory} must be a folder of cases, got a path without one")
    unread: list[OSError] = []
    every = list(files_below(directory, unread.append))
    groups, aside = _groups(every), left_aside(directory, every)
    locked = {str(error.filename): f"the folder cannot be read: {error.strerror}" for error in unread}
    if not groups and not (partial and locked):
        found = "; ".join(["found none", *(f"{folder}: {problem}" for folder, problem in locked.items()), *aside])
        raise ValueError(f"{directory} must hold cases of a known layout: {'; '.join(LAYOUTS)}; {found}")
    # A label map elsewhere, such as segment's own below the cases, makes no second case of its name.
    imaged = [group for group, files in groups.items() if set(files) != {"label"}]
    folders = Counter(case for case, _ in {(group.case, group.folder) for group in imaged})
    shared = {_patient(group, directory) for group in groups if folders[group.case] > 1 and group.layout != BARE}
    cases, messages = [], [] if partial else aside
    for folder, problem in locked.items():
        if partial:
            name = "_".join([*Path(os.path.relpath(folder, directory.parent)).parts, "unreadable"])
            cases.append({"case": name, "image": [None] * len(SEQUENCES), "problems": f"{folder}: {problem}"})
        else:
            messages.append(f"{folder}: {problem}")
    for group, files in groups.items():
        counted = {part: found for part, found in files.items() if not (partial and part == "label")}
        missing, twice = missing_or_twice(counted, ("image",) if LAYOUTS[group.layout].order else SEQUENCES)
        twice = "its name is nnU-Net's for one channel of four, not MSD's" if _is_channel(group, groups) else twice
        prefix, patient = _prefix(group, directory), _patient(group, directory)
        name = f"{prefix}{group.case}" if folders[group.case] > 1 else group.case
        if (missing or twice) and (not partial or set(files) <= {"label"}):
            messages.append(f"case {name} in {group.folder}: {'; '.join(filter(None, (missing, twice)))}")
            continue
        # All scans of a patient get the prefix if one does: they stay together, as those below one folder do anyway.
        prefixed = patient in shared and group.layout != BARE
        entry = {"case": name, "patient": f"{prefix}{patient}" if prefixed else patient}
        entry |= ({"missing": missing} if missing else {}) | ({"problems": twice} if twice else {})
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
        below = _groups(filterfalse(Path.is_dir, folder.rglob("*")))
        groups = {group: files for group, files in below.items() if set(files) != {"label"}}
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
    return parts.case, _groups(filterfalse(Path.is_dir, nearby)).get(parts._replace(part=""), {}), None


def missing_or_twice(files: dict[str, list[Path]], needed: Iterable[str] = SEQUENCES) -> tuple[str, str]:
    """Say which parts of a case are missing, and which are there twice; each text is empty if none is."""
    absent = [part for part in needed if part not in files]
    twice = [f"{part} twice: {', '.join(map(str, found))}" for part, found in files.items() if len(found) > 1]
    return f"missing {', '.join(absent)}" if absent else "", "; ".join(twice)


def require_case(entry: Any, where: str) -> dict[str, Any]:
    """
    Refuse an entry of a datalist that holds something else than a case does.

    Args:
        entry: a dictionary, or its "image" alone: a path, or a list of paths with ``None`` for a missing sequence.
        where: which entry it is, for the message.

    Returns:
        The dictionary.

    Raises:
        ValueError: for an image, label, case or fold of another type.
    """
    case = entry if isinstance(entry, dict) else {"image": entry}
    image = case.get("image") or 0
    rules: tuple[tuple[str, Any, type, str], ...] = (
        ("image", image if isinstance(image, list) else [image], str, "a path or a list of paths"),
        ("label", [case.get("label")], str, "a path"),
        ("case", [case.get("case")], str, "text"),
        ("fold", [case.get("fold")], int, "a whole number"),
    )
    for key, values, kind, rule in rules:
        if not all(value is None or isinstance(value, kind) for value in values):
            raise ValueError(f"{where}: {key} must be {rule}, got {case.get(key)!r:.80}")
    return case


def require_names(entries: Iterable[dict[str, Any]], where: str = "") -> None:
    """
    Refuse entries of a datalist that share a name, or whose name is a path, as what comes of a case is filed under it.

    Args:
        entries: each with its "image"; one without a "case" has the name that its files give it.
        where: what the entries are of, for the message.

    Raises:
        ValueError: naming two such entries, or the one.
    """
    images: dict[str, Any] = {}
    for entry in entries:
        name, image = entry.get("case") or image_name(entry.get("image")), entry.get("image")
        if Path(name).name != name:
            raise ValueError(f"cases{where} must have names that a file can have, got {name}")
        if name in images:
            hint = "" if "case" in entry else '; an entry may state a name as "case"'
            both = f"{images[name]} and {image}"
            raise ValueError(f"cases{where} must have names of their own, got {name} twice: {both}{hint}")
        images[name] = image


def image_name(image: Any) -> str:
    """Name a case as it is named when it is loaded."""
    paths = [Path(file) for file in (image if isinstance(image, list) else [image]) if file]
    if isinstance(image, list) or not paths or not paths[0].is_dir():
        return case_name(paths)
    try:
        return find_case(paths[0])[0]
    except ValueError:  # of no case or several, which loading tells better
        return paths[0].name


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


def _is_channel(group: NameParts, groups: dict[NameParts, dict[str, list[Path]]]) -> bool:
    """Tell one of nnU-Net's four files of a case, whose label has the name without the channel, from a case of MSD."""
    if LAYOUTS[group.layout].order is None or not re.search(r"_000[0-3]$", group.case) or "label" in groups[group]:
        return False
    return all(group._replace(case=f"{group.case[:-1]}{channel}") in groups for channel in range(4))


def _prefix(group: NameParts, directory: Path) -> str:
    """The folders that tell a case from one of the same name: BraTS 2015's HGG and LGG share some."""
    folders = Path(os.path.relpath(group.folder, directory)).parts
    return "".join(f"{folder}_" for folder in (folders[:-1] if folders[-1:] == (group.case,) else folders))


def _patient(group: NameParts, directory: Path) -> str:
    """Name the patient of a case: bare names have that of the first folder, so that all below it stays together."""
    if group.layout == BARE:
        return next(iter(Path(os.path.relpath(group.folder, directory)).parts), group.case)
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
