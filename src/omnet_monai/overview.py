"""The cases of one segmentation on one HTML page that needs no network, those that failed or are doubtful first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from omnet_monai.page import picture_of, write_html
from omnet_monai.results import milliliters
from omnet_monai.segmentation import NOTICE, CaseRecord

__all__ = ["write_overview"]

SHOWN = {
    "ml_WT": "WT, ml",
    "ml_TC": "TC, ml",
    "ml_ET": "ET, ml",
    "ml_edema": "edema, ml",
    "ml_NCR_NET": "NCR/NET, ml",
    "lesions_WT": "lesions, WT",
    "diameter_mm_WT": "diameter WT, mm",
    "diameter_mm_ET": "diameter ET, mm",
    "uncertainty_WT": "uncertainty WT",
    "uncertainty_TC": "uncertainty TC",
    "uncertainty_ET": "uncertainty ET",
}

LEGEND = (
    "WT is the whole tumor: NCR/NET (necrosis, or core that does not enhance), edema and ET. TC is the core: NCR/NET"
    " and ET. ET is the enhancing tumor. Uncertainty: 0 is sure, 1 is not at all, - is for a region that was not found."
    " The patient's right is on the left."
)

DIGITS = {"lesions": 0, "diameter": 1, "uncertainty": 2}


def write_overview(path: Path, records: Sequence[CaseRecord], pictures: Path, limit: int = 100) -> None:
    """
    Write the page.

    Args:
        path: HTML file to write.
        records: what came of each case.
        pictures: folder with ``<case>.png`` for each case that was segmented.
        limit: number of pictures to put in, as each takes up to half a MB; those of cases with warnings come first, and
            from all others a link leads to the file.
    """
    failed = [record for record in records if record.error]
    done = sorted((record for record in records if not record.error), key=lambda record: not record.warnings)
    header = "".join(f"<th>{name}</th>" for name in ("case", *SHOWN.values(), "warnings"))
    body = [
        f"<h1>{len(done)} of {len(records)} cases segmented</h1>",
        f"<p><b>{escape(NOTICE)}</b></p>",
        f"<p>{escape(LEGEND)}</p>",
        *[f'<p class="failed"><b>{escape(record.case)}:</b> {escape(record.error)}</p>' for record in failed],
        f'<div class="wide"><table><tr>{header}</tr>',
        *[_row(number, record) for number, record in enumerate(done)],
        "</table></div>",
        *[_section(number, record, pictures, number < limit) for number, record in enumerate(done)],
    ]
    write_html(path, f"{len(done)} of {len(records)} cases segmented", body)


def _row(number: int, record: CaseRecord) -> str:
    name = f'<a href="#case{number}">{escape(record.case)}</a>'
    cells = [_cell(column, record.measures) for column in SHOWN]
    kinds = ", ".join(sorted({text.split(":")[0] for text in record.warnings}))
    mark = ' class="fair"' if record.warnings else ""
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in (name, *cells, escape(kinds)))}</tr>"


def _cell(column: str, measures: dict[str, float]) -> str:
    kind, value = column.split("_")[0], measures[column]
    if kind == "uncertainty" and not measures[column.replace("uncertainty", "ml")]:
        return "-"
    return milliliters(value) if kind == "ml" else f"{value:.{DIGITS[kind]}f}"


def _section(number: int, record: CaseRecord, pictures: Path, within: bool) -> str:
    """Show a case: its warnings in full, and its picture or a link to it."""
    picture = pictures / f"{record.case}.png"
    link = f'<p><a href="{quote(f"{pictures.name}/{picture.name}")}">picture</a></p>'
    image = (picture_of(record.case, picture) if within else link) if picture.is_file() else ""
    found = "".join(f'<p class="fair">{escape(text)}</p>' for text in record.warnings)
    return f'<section id="case{number}"><h2>{escape(record.case)}</h2>{found}{image}</section>'
