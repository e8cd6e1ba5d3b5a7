"""The folder that segment writes to: what of it is finished, what may be replaced, and what is somebody else's."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from omnet_monai.files import whole_file
from omnet_monai.overview import write_overview
from omnet_monai.report import write_csv
from omnet_monai.segmentation import COLUMNS, NOTICE, CaseRecord, read_record, state_of
from omnet_monai.transforms import written_here

__all__ = ["LOCK", "OPTIONS", "POSTFIXES", "clear_case", "prepare_output", "require_apart", "sole_run", "sum_up"]

POSTFIXES = {"bundle": "seg", "brats": ""}
"""What follows the case's name in that of its label map, by the way of naming."""

OPTIONS = {
    "flips": "--tta, --accurate",
    "label_scheme": "--scheme",
    "output_postfix": "--naming",
    "overlap": "--fast, --accurate",
    "save_probabilities": "--probabilities",
    "search": "--accurate",
}
"""The options of segment that give a setting of another name."""

LOCK = ".omnet_monai.lock"

NAMES = ("index.html", "segmentation.csv", "segmentation.json", "records", "pictures", "uncertainty", "probabilities")
"""What segment writes beside ``datalist.json`` and the label maps."""


def require_apart(out: Path, cases: Sequence[dict[str, Any]]) -> None:
    """
    Refuse an output that images of the cases lie in, beside which a label map may be taken for the truth.

    Raises:
        ValueError: naming the case and the file.
    """
    for case in cases:
        for file in filter(None, [case["image"]] if isinstance(case["image"], str) else case["image"]):
            if os.path.realpath(os.path.dirname(file)) == os.path.realpath(out):
                rule = "label maps beside images may be taken for the truth: choose another --output"
                raise ValueError(f"{out} must hold no images of cases, got {file} of case {case['case']}; {rule}")


def prepare_output(out: Path, cases: Sequence[dict[str, Any]], settings: dict[str, Any], resume: bool) -> int:
    """
    Clear the output of the cases that are not finished, and write their datalist.

    Args:
        out: the folder.
        cases: all cases that are to be segmented.
        settings: what their label maps depend on, with "output_postfix" among it.
        resume: whether to keep what an earlier run finished with the same files.

    Returns:
        How many cases are kept.

    Raises:
        ValueError: if a file that is in the way was not written by segment, and for a run to resume that had other
            settings; nothing is changed then.
    """
    settings = json.loads(json.dumps(settings))
    datalist = out / "datalist.json"
    own = _is_own(datalist)
    maps = [_label_map(out, case["case"], settings) for case in cases]
    foreign = [path for path in maps if path.exists() and not (own and written_here(path))]
    foreign += [path for path in (datalist, *(out / name for name in NAMES)) if path.exists() and not own]
    if foreign:
        raise ValueError(f"{foreign[0]} must not be replaced, as segment did not write it: choose another --output")
    if resume:
        _require_settings(out, cases, settings)
    left = [case for case in cases if not (resume and _finished(out, case, settings))]
    for case in left:
        (out / "records" / f"{case['case']}.json").unlink(missing_ok=True)
        clear_case(out, case["case"], settings)
        _clear_other_names(out, case["case"], maps)
    content = {"name": out.name, "description": NOTICE, "settings": settings, "test": left}
    with whole_file(datalist) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(cases) - len(left)


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """
    Keep other runs out of the folder until the end of the block. Where the disk knows no locks, warn and go on without.

    Raises:
        ValueError: if another run is in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        rule = "choose another --output, or let torchrun share the cases among processes"
        raise ValueError(f"{out} is being written by another run: {rule}") from error
    except (OSError, NotImplementedError) as error:  # network disks without locks
        warnings.warn(f"{out} cannot be locked, let no other run write into it: {error}", stacklevel=2)
    try:
        yield
    finally:
        if lock.is_locked:
            (out / LOCK).unlink(missing_ok=True)
            lock.release()


def clear_case(out: Path, case: str, settings: dict[str, Any]) -> None:
    """Leave nothing of a case that is not whole, but for its record."""
    maps = [out / kind / f"{case}_{kind}.nii.gz" for kind in ("probabilities", "uncertainty")]
    for path in (_label_map(out, case, settings), out / "pictures" / f"{case}.png", *maps):
        path.unlink(missing_ok=True)


def _clear_other_names(out: Path, case: str, maps: Sequence[Path]) -> None:
    """Remove the label maps of a run with another --naming, which would stand beside ``maps``, those of this one."""
    for path in (_label_map(out, case, {"output_postfix": postfix}) for postfix in POSTFIXES.values()):
        if path not in maps and path.exists() and written_here(path):  # x_seg may be a case beside x
            path.unlink()


def sum_up(out: Path, cases: Sequence[dict[str, Any]]) -> list[str]:
    """Write the table and the page of all cases, and return the names of those that failed."""
    records = [
        read_record(out / "records" / f"{case['case']}.json")
        or CaseRecord(case["case"], case["image"], "not segmented: the run ended before, --resume goes on")
        for case in cases
    ]
    rows: list[list[str | float]] = [
        [
            r.case,
            *(r.measures.get(name, "") for name in COLUMNS),
            r.error,
            "; ".join(r.warnings),
            r.seconds or "",
            r.notice,
        ]
        for r in records
    ]
    header = ["case", *COLUMNS, "error", "warnings", "seconds", "notice"]
    write_csv(out / "segmentation.csv", header, rows)
    content = {"notice": NOTICE, "cases": [asdict(record) for record in records]}
    with whole_file(out / "segmentation.json") as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_overview(out / "index.html", records, out / "pictures")
    return [record.case for record in records if record.error]


def _is_own(datalist: Path) -> bool:
    """Tell segment's datalist, which has the settings, from any other."""
    try:
        return "settings" in json.loads(datalist.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _require_settings(out: Path, cases: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Refuse to resume a run of other settings, which would have to do everything again."""
    for record in filter(None, (read_record(out / "records" / f"{case['case']}.json") for case in cases)):
        then = {name: value for name, value in record.settings.items() if name not in ("order", "files")}
        names = [name for name in sorted(then | settings) if then.get(name) != settings.get(name)]
        if names and not record.error:
            named = {name: f"{name} ({OPTIONS[name]})" if name in OPTIONS else name for name in names}
            both = {name: [each.get(name, "by default") for each in (then, settings)] for name in names}
            others = "; ".join(f"{named[name]} {old}, now {new}" for name, (old, new) in both.items())
            rule = "without --resume everything is done again"
            raise ValueError(f"{out} has case {record.case} of a run with other settings: {others}; {rule}")


def _finished(out: Path, case: dict[str, Any], settings: dict[str, Any]) -> bool:
    earlier = read_record(out / "records" / f"{case['case']}.json")
    if earlier is None or earlier.error or not _label_map(out, case["case"], settings).is_file():
        return False
    return (earlier.image, earlier.settings) == (case["image"], settings | state_of(case))


def _label_map(out: Path, case: str, settings: dict[str, Any]) -> Path:
    return out / f"{'_'.join(filter(None, [case, settings['output_postfix']]))}.nii.gz"
