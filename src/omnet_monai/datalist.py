"""Write the datalist of a folder of cases, with its folds, and read cases back from it."""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from omnet_monai.files import read_object, whole_file
from omnet_monai.finding import find_cases, require_case, require_names
from omnet_monai.regions import CLASS_NAMES, SCHEMES, SEQUENCES
from omnet_monai.sampling import with_labels

__all__ = ["datalist", "read_cases", "read_images", "read_scored_cases", "write_datalist"]


def write_datalist(
    directory: str | Path,
    output: str | Path | None = None,
    folds: int = 5,
    seed: int = 0,
    split: str | Path | None = None,
    scheme: str | None = None,
) -> Path:
    """
    Write the datalist of a directory: a JSON as the decathlon's, with a ``fold`` per training case.

    Labeled cases are for training, the others for testing, unless ``split`` says otherwise. Patients, not scans, are
    dealt to the folds, so that all scans of one patient are in one fold. The arguments are those of :func:`datalist`.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no complete case, for two cases of one name, for a split that names unknown or unlabeled
            cases or has a patient on both sides, and for more folds than patients.
    """
    return _write(directory, *find_cases(directory, scheme), output, folds, seed, split)


def read_cases(
    datalist: str | Path, section: str = "training", fold: int | None = None, held_out: bool = False
) -> list[dict[str, Any]]:
    """
    Read the cases of a datalist.

    Args:
        datalist: path of the JSON file; relative paths in it start at its own folder.
        section: "training", "test" or another list of the file.
        fold: the fold to hold out; ``None`` to hold out none.
        held_out: whether to return the fold held out rather than all others.

    Returns:
        The entries of the section, with absolute paths.

    Raises:
        ValueError: if the file or the section does not exist, an entry is none of a case, two cases have one name, or
            no case is in the fold.
    """
    if fold is None and held_out:
        return []
    path = Path(datalist)
    content = read_object("datalist", path)
    if not isinstance(content.get(section), list):
        known = [key for key, value in content.items() if isinstance(value, list)]
        raise ValueError(f"section must be one of {', '.join(known)} in {path}, got {section!r}")
    # Not load_decathlon_datalist: it makes a path of any value that happens to name one, as "case" names a folder.
    cases = [require_case(entry, f"{path}, entry {n} of {section}") for n, entry in enumerate(content[section], 1)]
    cases = [_with_paths(case, Path(os.path.abspath(path)).parent, absolute=True) for case in cases]
    require_names(cases, f" of {path}")
    if fold is None:
        return cases
    if not any(case.get("fold") == fold for case in cases):
        known = sorted({str(case["fold"]) for case in cases if "fold" in case})
        raise ValueError(f"fold must be one of {', '.join(known) or 'none'} in {section} of {path}, got {fold}")
    return [case for case in cases if (case.get("fold") == fold) == held_out]


def read_scored_cases(datalist: str | Path, section: str = "test", fold: int | None = None) -> list[dict[str, Any]]:
    """
    Read the cases to score: of the fold held out where one is named, else of the whole section.

    Args:
        datalist: path of the JSON file.
        section: "training", "test" or another list of the file.
        fold: the fold that training held out, ``None`` for all cases of the section.

    Returns:
        The entries, with absolute paths.

    Raises:
        ValueError: if there is no case, or cases have no label.
    """
    cases = read_cases(datalist, section, fold, held_out=fold is not None)
    if not cases:
        raise ValueError(f"section {section!r} of {datalist} must hold cases to score, it is empty")
    return with_labels(cases)


def read_images(directory: str | Path) -> list[dict[str, Any]]:
    """
    Find the cases of a directory to segment: labels that lie beside the images are left out, incomplete cases are
    warned of.

    Args:
        directory: folder of cases in any known layout.

    Returns:
        Complete cases without labels, with absolute paths.

    Raises:
        ValueError: if no complete case is found.
    """
    cases, messages = find_cases(directory)
    for message in messages:
        warnings.warn(f"left out: {message}", stacklevel=2)
    if not cases:
        raise ValueError(f"{directory} must hold at least one complete case; {'; '.join(messages)}")
    return [{key: value for key, value in case.items() if key not in ("label", "scheme")} for case in cases]


def datalist(
    directory: str,
    output: str | None = None,
    folds: int = 5,
    seed: int = 0,
    split: str | None = None,
    scheme: str | None = None,
) -> None:
    """
    Write the datalist of a directory and print what is in it; incomplete cases go to stderr.

    Args:
        directory: where the cases are; incomplete ones are left out.
        output: the file to write, by default ``datalist.json`` in the directory. Paths in it are relative to its own
            folder for files below that, absolute for others.
        folds: number of folds, at most the number of training patients; all scans of a patient are in one.
        seed: of the shuffling of patients.
        split: JSON file ``{"training": [case, ...], "test": [case, ...]}``; cases it does not name are left out. By
            default cases with a label are for training, the others for testing.
        scheme: label scheme of every case, brats2015, brats2017, brats2023 or msd, by default that of its layout.
    """
    cases, messages = find_cases(directory, scheme)
    for message in messages:
        print(f"left out: {message}", file=sys.stderr)
    path = _write(directory, cases, messages, output, folds, seed, split)
    training, test = read_cases(path), read_cases(path, "test")
    for key, prefix, cases in (("scheme", "", training + test), ("fold", "fold ", training)):
        for value, count in sorted(Counter(case[key] for case in cases).items()):
            patients = {case["patient"] for case in cases if case[key] == value}
            print(f"{prefix}{value}: {count} cases of {len(patients)} patients")
    print(f"{len(training)} training, {len(test)} test: {path}")


def _write(
    directory: str | Path,
    cases: list[dict[str, Any]],
    messages: list[str],
    output: str | Path | None,
    folds: int,
    seed: int,
    split: str | Path | None,
) -> Path:
    """Write the datalist of what was found in a directory."""
    if not cases:
        raise ValueError(f"{directory} must hold a complete case, got {'; '.join(messages)}")
    require_names(cases, f" of {directory}")
    output = Path(directory, "datalist.json") if output is None else Path(output)
    if split is None:
        training, test = [case for case in cases if "label" in case], [case for case in cases if "label" not in case]
    else:
        training, test = _split(cases, Path(split))
    fold_of = _folds(training, folds, seed)
    base = Path(os.path.abspath(output)).parent
    content = {
        "name": Path(os.path.abspath(directory)).name,
        "description": "brain tumor MRI; each case names its label scheme",
        "modality": {str(channel): name for channel, name in enumerate(SEQUENCES)},
        "labels": _label_names(cases),
        "numTraining": len(training),
        "numTest": len(test),
        "training": [_with_paths(case, base) | {"fold": fold_of[case["patient"]]} for case in training],
        "test": [_with_paths(case, base) for case in test],
    }
    with whole_file(output) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return output


def _split(cases: list[dict[str, Any]], split: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pick the cases that a split file names for training and for test."""
    content = read_object("split", split)
    sections = [content.get(section, []) for section in ("training", "test")]
    asked: list[Any] = [name for names in sections for name in (names if isinstance(names, list) else [None])]
    rule = f"split {split} must list names of cases, each once, under training or test"
    if not asked or not all(isinstance(name, str) for name in asked):
        raise ValueError(f"{rule}, got {json.dumps(content):.80}")
    twice = [name for name, count in Counter(asked).items() if count > 1]
    if twice:
        raise ValueError(f"{rule}, got {', '.join(twice)} twice")
    by_name = {case["case"]: case for case in cases}
    unknown = [name for name in asked if "label" not in by_name.get(name, {})]
    if unknown:
        raise ValueError(f"split {split} must name complete cases with a label, got {', '.join(unknown)}")
    training, test = ([by_name[name] for name in names] for names in sections)
    both = {case["patient"] for case in training} & {case["patient"] for case in test}
    if both:
        raise ValueError(f"split {split} must not share patients between training and test, got {sorted(both)}")
    return training, test


def _folds(training: list[dict[str, Any]], folds: int, seed: int) -> dict[str, int]:
    """Deal the patients to the folds in turn, after a seeded shuffle: fold sizes differ by one patient at most."""
    patients = sorted({case["patient"] for case in training})
    if patients and not 1 <= folds <= len(patients):
        number = f"{len(patients)}, got {folds}: state --folds {min(max(folds, 1), len(patients))}"
        rule = "the patient of bare names such as t1.nii.gz is the first folder below that of all cases"
        raise ValueError(f"folds must be between 1 and the number of training patients, {number}; {rule}")
    random.Random(seed).shuffle(patients)
    return {patient: position % folds for position, patient in enumerate(patients)}


def _label_names(cases: list[dict[str, Any]]) -> dict[str, str]:
    """Name the codes of the label files if all cases share a scheme, else the inner classes."""
    schemes = {case["scheme"] for case in cases}
    codes = SCHEMES[schemes.pop()] if len(schemes) == 1 else dict(enumerate(range(len(CLASS_NAMES))))
    return {str(code): CLASS_NAMES[cls] for code, cls in codes.items()}


def _with_paths(case: dict[str, Any], base: Path, absolute: bool = False) -> dict[str, Any]:
    """Make the paths of an entry absolute, or relative to a folder where they are below it."""

    def convert(file: str | None) -> str | None:
        if file is None:  # a sequence that is missing
            return None
        # abspath follows no link: the file a link leads to may have a name that tells nothing.
        path = Path(os.path.abspath(base / file if absolute else file))
        return str(path) if absolute or not path.is_relative_to(base) else path.relative_to(base).as_posix()

    files = {key: case[key] for key in ("image", "label") if key in case}
    return case | {k: [convert(f) for f in v] if isinstance(v, list) else convert(v) for k, v in files.items()}
