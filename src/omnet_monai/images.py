"""The images that a command line names: folders of a case or of many, 4-D files, or the four files of one case."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omnet_monai.layouts import case_name, find_case, find_cases
from omnet_monai.regions import SEQUENCES

__all__ = ["file_states", "find_images"]


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
    channels = tuple(order.split(",") if isinstance(order, str) else order or ())
    if channels and sorted(channels) != sorted(SEQUENCES):
        raise ValueError(f"order must be a permutation of {','.join(SEQUENCES)}, got {','.join(channels)}")
    cases = [case for path in paths for case in _cases_of(Path(os.path.abspath(path)), channels)]
    if single:
        missing = [f"--{sequence}" for sequence in SEQUENCES if sequence not in single]
        if missing and not allow_missing:
            raise ValueError(f"a case of four files needs --t1, --t1c, --t2 and --flair, lacks {', '.join(missing)}")
        files = [os.path.abspath(single[sequence]) if sequence in single else None for sequence in SEQUENCES]
        cases.append({"case": case_name([Path(file) for file in files if file]), "image": files})
    for case in cases if allow_missing else ():
        if case.get("problems", "").startswith("missing ") and ";" not in case["problems"]:
            del case["problems"]
    if not cases:
        raise ValueError("segment needs cases: folders, 4-D files, or --t1, --t1c, --t2 and --flair, got none")
    names: dict[str, Any] = {}
    for case in cases:
        if case["case"] in names:
            both = f"{names[case['case']]} and {case['image']}"
            raise ValueError(f"cases must have names of their own, got {case['case']} twice: {both}")
        names[case["case"]] = case["image"]
    return cases


def file_states(image: Any) -> list[list[int]]:
    """Return size and time of change of the files that a case's image lists or, as one path, stands for."""
    paths = [Path(path) for path in (image if isinstance(image, list) else [image]) if path]
    if not isinstance(image, list):
        with suppress(ValueError):  # a folder of no case or several, which reading tells better
            paths += [file for files in find_case(image)[1].values() for file in files]
    stats = [path.stat() for path in paths if path.is_file()]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _cases_of(path: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """List the cases that one path stands for."""
    if not path.exists():
        raise ValueError(f"a case must be a folder or a file, got {path}, which does not exist")
    if path.is_dir():
        found, _ = find_cases(path, partial=True)  # what is left out has a label map alone
        if not found:
            raise ValueError(f"{path} must hold images of a case, got label maps alone")
        return [{key: case[key] for key in ("case", "image", "order", "problems") if key in case} for case in found]
    case, files, known = find_case(path)
    entry: dict[str, Any] = {"case": case, "image": str(path)}
    if "image" in files and not (order or known):
        entry["problems"] = f"order of the channels of {path} is not known: state it, as in --order flair,t1,t1c,t2"
    return [entry | ({"order": list(order or known or ())} if "image" in files else {})]
