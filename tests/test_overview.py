"""What the page of a segmentation shows."""

from __future__ import annotations

import re
from pathlib import Path

from omnet_monai.overview import write_overview
from omnet_monai.segmentation import COLUMNS, NOTICE, CaseRecord

PNG = b"\x89PNG of "


def make_page(folder: Path, records: list[CaseRecord], limit: int = 100) -> str:
    for record in records:
        if not record.error:
            (folder / f"{record.case}.png").write_bytes(PNG + record.case.encode())
    write_overview(folder / "index.html", records, folder, limit)
    return (folder / "index.html").read_text(encoding="utf-8")


def make_record(case: str, *warnings: str, error: str = "") -> CaseRecord:
    return CaseRecord(case, "image", error, list(warnings), {} if error else dict.fromkeys(COLUMNS, 12.34))


RECORDS = [
    make_record("fine"),
    make_record("<b>torn", error="file must be readable, got <nothing>"),
    make_record("doubtful", "order: looks like t1c, t1", "spacing: 3 mm"),
]


def test_failures_come_first_then_what_was_warned_of_then_the_rest(tmp_path: Path) -> None:
    page = make_page(tmp_path, RECORDS)
    assert "<h1>2 of 3 cases segmented</h1>" in page
    assert "<title>2 of 3 cases segmented</title>" in page
    places = [page.index(text) for text in ("&lt;b&gt;torn:", "<h2>doubtful", "spacing: 3 mm</p>", "<h2>fine")]
    assert places == sorted(places)
    assert re.findall(r'<a href="#case\d">(\w+)</a></td><td>12\.3', page) == ["doubtful", "fine"]
    assert "<td>order, spacing</td>" in page
    assert NOTICE in page


def test_a_page_holds_its_pictures_and_asks_for_nothing(tmp_path: Path) -> None:
    page = make_page(tmp_path, RECORDS)
    assert page.count('src="data:image/png;base64,') == 2
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_screen_narrower_than_the_table_scrolls_the_table_alone(tmp_path: Path) -> None:
    page = make_page(tmp_path, RECORDS)
    assert page.count('<div class="wide"><table>') == page.count("</table></div>") == page.count("<table") == 1
    assert ".wide { overflow-x: auto }" in page


def test_beyond_the_limit_links_lead_to_the_pictures(tmp_path: Path) -> None:
    page = make_page(tmp_path, [*RECORDS, make_record("the last#1")], limit=1)
    assert page.count("<img") == 1
    folder = tmp_path.name
    assert re.findall(r'href="([^#][^"]*)"', page) == [f"{folder}/fine.png", f"{folder}/the%20last%231.png"]


def test_a_region_that_was_not_found_has_no_uncertainty(tmp_path: Path) -> None:
    measures = dict.fromkeys(COLUMNS, 12.34) | {"ml_ET": 0.0, "uncertainty_ET": 1.0}
    page = make_page(tmp_path, [CaseRecord("no_ET", "image", measures=measures)])
    assert page.count("<td>-</td>") == 1
    assert "<td>1.00</td>" not in page


def test_a_page_of_failures_alone_and_of_nothing_is_written(tmp_path: Path) -> None:
    assert "<h1>0 of 1 cases segmented</h1>" in make_page(tmp_path, [make_record("torn", error="empty")])
    assert "<h1>0 of 0 cases segmented</h1>" in make_page(tmp_path, [])
