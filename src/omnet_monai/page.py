"""The report of an evaluation as one HTML file that needs no network: distributions, worst cases first, pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from omnet_monai.files import whole_file
from omnet_monai.metrics import IN_UNITS, METRICS
from omnet_monai.regions import REGIONS
from omnet_monai.results import COLUMNS, VOLUMES, CaseScore, Results, digits, milliliters

__all__ = ["picture_of", "write_html", "write_page"]

WIDTH, LANE, LEFT = 570, 46, 44
"""Of a chart: width, height of a region's lane, and space for its name, in pixels."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1280px; margin: 1.5em auto; padding: 0 1em; color: #1c2430 }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 1.6em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4em 0 } .wide { overflow-x: auto }
th, td { padding: .15em .55em; text-align: right; border-bottom: 1px solid #dfe3e8 } th { font-weight: 600 }
th:first-child, td:first-child { text-align: left } small { color: #5b6675; white-space: nowrap }
img { width: 100%; background: black; display: block } section { margin-bottom: 2em }
.charts { display: flex; flex-wrap: wrap; gap: 1em } svg { max-width: 100% } svg text { font-size: 12px; fill: #5b6675 }
.poor { background: #ffc9bd } .fair { background: #ffeec2 }
.failed { border-left: 5px solid #c92a2a; background: #fff0ee; padding: .5em 1em }
circle { fill: #2477b3; fill-opacity: .55 } circle:hover { fill-opacity: 1 } a { color: inherit }
"""


def write_page(path: Path, results: Results, pictures: Path | None, limit: int = 100) -> None:
    """
    Write the page.

    Args:
        path: HTML file to write.
        results: what it shows.
        pictures: folder with ``<case>.png`` for each case that could be drawn, ``None`` for a page without.
        limit: number of pictures to put in, of the worst cases, as each takes about half a MB.
    """
    cases = [_case(number, case, pictures if number < limit else None) for number, case in enumerate(results.scored)]
    total = len(results.scored) + len(results.failed)
    body = [
        f"<h1>{len(results.scored)} of {total} cases scored</h1>",
        *[f'<p class="failed"><b>Not scored:</b> {escape(case.error)}</p>' for case in results.failed],
        _summary(results),
        _differences(results),
        '<div class="charts">',
        *[_chart(metric, results.scored) for metric in ("dice", "hd95")],
        "</div>",
        "<h2>Cases, lowest mean Dice first</h2>",
        "" if pictures is None else "<p>The patient's right is on the left of a picture.</p>",
        *cases,
    ]
    write_html(path, "Evaluation", body)


def write_html(path: Path, title: str, body: Sequence[str]) -> None:
    """Write an HTML file, whole or not at all, that holds everything it shows."""
    # The policy forbids every request, so the page is the same wherever it is opened.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    with whole_file(path) as part:
        part.write_text(
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n",
            encoding="utf-8",
        )


def picture_of(case: str, picture: Path) -> str:
    """Return the element that holds a PNG file itself."""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f'<img alt="three planes of {escape(case)}" src="data:image/png;base64,{data}">'


def _summary(results: Results) -> str:
    """Table the means, each with its range or interval."""
    if results.summary is None:
        return ""
    figures = zip(COLUMNS, results.summary.mean, results.summary.low, results.summary.high, strict=True)
    cells = [
        f"{digits(column, mean)} <small>{digits(column, low)} to {digits(column, high)}</small>"
        for column, mean, low, high in figures
    ]
    beside = "95 % bootstrap interval" if results.summary.interval else "lowest and highest case"
    return f"<h2>Mean <small>{beside}</small></h2>" + _table(cells)


def _differences(results: Results) -> str:
    """Table the mean paired differences, each with its standard error."""
    if results.differences is None:
        return ""
    figures = zip(COLUMNS, results.differences.mean, results.differences.error, strict=True)
    cells = [f"{digits(c, mean)} <small>± {digits(c, error)}</small>" for c, mean, error in figures]
    title = (
        f"Difference to {escape(results.other)} <small>mean of {len(results.compared)} paired cases ± standard error"
    )
    return f"<h2>{title}</small></h2>" + _table(cells)


def _table(cells: Sequence[str], classes: Sequence[str] | None = None, volumes: Sequence[str] = ()) -> str:
    """Lay out a cell per metric and region, metrics across."""
    names = [*METRICS.values(), *(["truth (ml)", "prediction (ml)"] if volumes else [])]
    rows = [f"<tr><th></th>{''.join(f'<th>{name}</th>' for name in names)}</tr>"]
    for row, region in enumerate(REGIONS):
        chosen = range(row, len(cells), len(REGIONS))
        marked = [f'<td class="{classes[i] if classes else ""}">{cells[i]}</td>' for i in chosen]
        plain = [f"<td>{volume}</td>" for volume in volumes[row :: len(REGIONS)]]
        rows.append(f"<tr><td><b>{region}</b></td>{''.join(marked + plain)}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _case(number: int, case: CaseScore, pictures: Path | None) -> str:
    """Show a case: its scores, poor ones marked, its volumes and its picture."""
    cells = [digits(column, case.values[column]) for column in COLUMNS]
    classes = [_mark(column, case.values[column]) for column in COLUMNS]
    volumes = [milliliters(case.values[column]) for column in VOLUMES]
    picture = None if pictures is None else pictures / f"{case.case}.png"
    image = picture_of(case.case, picture) if picture and picture.is_file() else ""
    table = _table(cells, classes, volumes)
    return f'<section id="case{number}"><h3>{number + 1}. {escape(case.case)}</h3>{table}{image}</section>'


def _mark(column: str, score: float) -> str:
    """Class of a cell whose score a reader should see first; specificity is always close to 1."""
    if column.startswith((*IN_UNITS, "specificity")):
        return ""
    return "poor" if score < 0.5 else "fair" if score < 0.75 else ""


def _chart(metric: str, cases: Sequence[CaseScore]) -> str:
    """Draw a dot per case in a lane per region, with a line at the mean; a dot leads to its case."""
    values = {region: [case.values[f"{metric}_{region}"] for case in cases] for region in REGIONS}
    top = 1.0 if metric == "dice" else max([*(max(v, default=0.0) for v in values.values()), 1.0])
    height = LANE * len(REGIONS) + 30
    parts = [f'<text x="{LEFT}" y="{height - 4}">0</text>']
    parts += [f'<text x="{WIDTH - 10}" y="{height - 4}" text-anchor="end">{METRICS[metric]} {top:.3g}</text>']
    for lane, (region, scores) in enumerate(values.items()):
        middle = lane * LANE + LANE // 2
        parts.append(f'<text x="4" y="{middle + 4}">{region}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{middle}" y2="{middle}" stroke="#dfe3e8"/>')
        if scores:
            x = _x(sum(scores) / len(scores), top)
            parts.append(f'<line x1="{x}" x2="{x}" y1="{middle - 18}" y2="{middle + 18}" stroke="#c92a2a"/>')
        for number, (case, score) in enumerate(zip(cases, scores, strict=True)):
            y = middle + (number * 7) % 25 - 12  # spread, so that equal scores do not hide each other
            dot = f'<circle cx="{_x(score, top)}" cy="{y}" r="5"><title>{escape(case.case)}: '
            parts.append(f'<a href="#case{number}">{dot}{digits(metric, score)}</title></circle></a>')
    title = f"<h2>{METRICS[metric]} per region <small>a dot per case, red: mean</small></h2>"
    return f'<div>{title}<svg width="{WIDTH}" height="{height}">{"".join(parts)}</svg></div>'


def _x(score: float, top: float) -> float:
    return round(LEFT + score / top * (WIDTH - 10 - LEFT), 1)
