"""The images that a command line names: folders of a case or of many, 4-D files, or the four files of one case."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from omnet_monai.finding import find_case, find_cases, missing_or_twice, require_names
from omnet_monai.layouts import case_name
from omnet_monai.regions import SEQUENCES

__all__ = ["file_states", "find_images"]

WITHOUT = "--allow_missing segments such a case, at a loss"
"""What a user may do about a case that lacks sequences."""


def find_images(
    paths: Sequence[str],
    single: dict[str, str] | None = None,
    order: Sequence[str] | str | None = None,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """
    List the cases to segment.

    Args:
        paths: folders of a case or of many, or image files.
        single: the files of one case by sequence.
        order: the channels of 4-D files, a sequence or a text with commas.
        allow_missing: let a case lack sequences; ``None`` stands in their places.

    Returns:
        Entries of a datalist, ``{"case", "image"}`` with absolute paths and for a 4-D file its "order"; an entry with
        "problems" cannot be segmented.

    Raises:
        ValueError: if there are none, if a path does not exist or holds no case, if ``single`` is not complete, for an
            unknown order, and for two cases of one name.
    """
    channels = tuple(map(str.strip, order.split(",")) if isinstance(order, str) else order or ())
    if channels and sorted(channels) != sorted(SEQUENCES):
        raise ValueError(f"order must be a permutation of {','.join(SEQUENCES)}, got {','.join(channels)}")
    cases = [case for path in paths for case in _cases_of(Path(os.path.abspath(path)), channels)]
    if single:
        missing = [f"--{sequence}" for sequence in SEQUENCES if sequence not in single]
        if missing and not allow_missing:
            rule = "a case of four files needs --t1, --t1c, --t2 and --flair"
            raise ValueError(f"{rule}, lacks {', '.join(missing)}; {WITHOUT}")
        files = [os.path.abspath(single[sequence]) if sequence in single else None for sequence in SEQUENCES]
        cases.append({"case": case_name([Path(file) for file in files if file]), "image": files})
    if not cases:
        raise ValueError("segment needs cases: folders, 4-D files, or --t1, --t1c, --t2 and --flair, got none")
    entries = [_entry(case, allow_missing) for case in cases]
    # A case may be named by each of its files.
    entries = list({str(entry): entry for entry in entries}.values())
    require_names(entries)
    return entries


def file_states(image: str | Sequence[str | None]) -> list[list[int]]:
    """Return size and time of change of the files that a case's image lists or, as one path, stands for."""
    paths = [Path(path) for path in ([image] if isinstance(image, str) else image) if path]
    if isinstance(image, str):
        with suppress(ValueError, OSError):  # a folder of no case or several, which reading tells better
            paths += [file for files in find_case(image)[1].values() for file in files]
    states = []
    for path in paths:
        with suppress(OSError):  # of a file that is not there, or in a folder that cannot be entered
            stat = path.stat()
            states += [[stat.st_size, stat.st_mtime_ns]] if S_ISREG(stat.st_mode) else []
    return states


def _cases_of(path: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """List the cases that one path stands for."""
    if not path.exists():
        raise ValueError(f"a case must be a folder or a file, got {path}, which does not exist")
    if path.is_dir():
        try:
            found, _ = find_cases(path, partial=True)  # what is left out has a label map alone
        except ValueError as error:
            rule = "name files of other names one by one: 4-D with --order, 3-D by --t1, --t1c, --t2 and --flair"
            raise ValueError(f"{error}; {rule}") from error
        if not found:
            raise ValueError(f"{path} must hold images of a case, got label maps alone")
        return [case | ({"order": list(order)} if order and "order" in case else {}) for case in found]
    case, files, known = find_case(path)
    if "image" not in files:
        missing, twice = missing_or_twice({part: found for part, found in files.items() if part != "label"})
        listed = [str(files[sequence][0]) if sequence in files else None for sequence in SEQUENCES]
        return [{"case": case, "image": listed, "missing": missing, "problems": twice}]
    channels = list(order or known or ())
    rule = "state it for a 4-D file, as in --order flair,t1,t1c,t2; name 3-D ones by --t1, --t1c, --t2 and --flair"
    problems = f"{path} is no sequence by its name, and the order of its channels is not known: {rule}"
    return [{"case": case, "image": str(path), "order": channels, "problems": "" if channels else problems}]


def _entry(case: dict[str, Any], allow_missing: bool) -> dict[str, Any]:
    """Make the entry of a datalist, with everything that keeps the case from being segmented as its "problems"."""
    image = case["image"]
    entry = {
        "case": _printable(case["case"]),
        "image": _printable(image) if isinstance(image, str) else [file and _printable(file) for file in image],
    }
    entry |= {"order": case["order"]} if "order" in case else {}
    missing = case.get("missing")
    problems = [f"{missing}; {WITHOUT}" if missing and not allow_missing else "", case.get("problems")]
    if entry["image"] != image:
        problems.append("the names of files and folders must be in UTF-8")
    text = "; ".join(filter(None, problems))
    return entry | ({"problems": text} if text else {})


def _printable(name: str) -> str:
    """Write out the bytes of a name that are not UTF-8, which no table, page or record could hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
