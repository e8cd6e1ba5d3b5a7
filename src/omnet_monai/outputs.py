"""The folder that segment writes to: what of it is finished, what may be replaced, and what is somebody else's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel

from omnet_monai.files import whole_file
from omnet_monai.reading import UNREADABLE
from omnet_monai.segmentation import NOTICE, read_record, state_of
from omnet_monai.transforms import DESCRIPTION

__all__ = ["clear_case", "prepare_output"]


def prepare_output(out: Path, cases: Sequence[dict[str, Any]], settings: dict[str, Any], resume: bool) -> None:
    """
    Clear the output of the cases that are not finished, and write their datalist.

    Args:
        out: the folder.
        cases: all cases that are to be segmented.
        settings: what their label maps depend on, with "output_postfix" among it.
        resume: whether to keep what an earlier run finished with the same settings and files.

    Raises:
        ValueError: if a file that is in the way was not written by segment; nothing is changed then.
    """
    settings = json.loads(json.dumps(settings))
    for path in (_label_map(out, case["case"], settings) for case in cases):
        if path.exists() and not _written_by_segment(path):
            raise ValueError(f"{path} must not be replaced, as segment did not write it: choose another --output")
    datalist = out / "datalist.json"
    if datalist.is_file() and "settings" not in json.loads(datalist.read_text(encoding="utf-8")):
        raise ValueError(f"{datalist} must not be replaced, as segment did not write it: choose another --output")
    left = [case for case in cases if not (resume and _finished(out, case, settings))]
    for case in left:
        (out / "records" / f"{case['case']}.json").unlink(missing_ok=True)
        clear_case(out, case["case"], settings)
    content = {"name": out.name, "description": NOTICE, "settings": settings, "test": left}
    with whole_file(datalist) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def clear_case(out: Path, case: str, settings: dict[str, Any]) -> None:
    """Leave nothing of a case that is not whole, but for its record."""
    maps = [out / kind / f"{case}_{kind}.nii.gz" for kind in ("probabilities", "uncertainty")]
    for path in (_label_map(out, case, settings), out / "pictures" / f"{case}.png", *maps):
        path.unlink(missing_ok=True)


def _finished(out: Path, case: dict[str, Any], settings: dict[str, Any]) -> bool:
    earlier = read_record(out / "records" / f"{case['case']}.json")
    if earlier is None or earlier.error or not _label_map(out, case["case"], settings).is_file():
        return False
    return (earlier.image, earlier.settings) == (case["image"], settings | state_of(case))


def _label_map(out: Path, case: str, settings: dict[str, Any]) -> Path:
    return out / f"{'_'.join(filter(None, [case, settings['output_postfix']]))}.nii.gz"


def _written_by_segment(path: Path) -> bool:
    """Tell by the header, which has the terms of use."""
    try:
        return DESCRIPTION[:20] in str(nibabel.Nifti1Image.from_filename(path).header["descrip"])
    except UNREADABLE:
        return False
