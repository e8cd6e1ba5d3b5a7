"""The table, the files and the page of an evaluation."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread, imsave

from omnet_monai.page import write_page
from omnet_monai.results import COLUMNS, VOLUMES, CaseScore, Results, digits, milliliters, read_scores


def make_case(name: str, value: float, patient: str = "") -> CaseScore:
    return CaseScore(name, patient or name, {column: value for column in COLUMNS + VOLUMES})


def make_cases(number: int) -> list[CaseScore]:
    """Cases whose every score is 0, 0.1, 0.2, ..."""
    return [make_case(f"case{i}", i / 10) for i in range(number)]


FAILED = CaseScore("torn", "torn", error="case torn: no <file>")


def write(folder: Path, results: Results, limit: int = 100) -> str:
    """Write the page with a red picture per case, and return its text."""
    for case in results.scored:
        folder.mkdir(exist_ok=True)
        imsave(folder / f"{case.case}.png", np.full((60, 80, 3), (255, 0, 0), dtype=np.uint8))
    write_page(folder / "report.html", results, folder, limit)
    return (folder / "report.html").read_text()


def test_below_ten_cases_every_case_and_the_range_are_given_and_no_interval(tmp_path: Path) -> None:
    results = Results([*make_cases(9), FAILED])
    results.write(tmp_path)
    text, page = results.text(), write(tmp_path, results)
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "WT/TC/ET of 9",
        *(f"case{i}" for i in range(9)),
        *("mean", "lowest case", "highest case", "not scored: case torn: no <file>"),
    ]
    assert "0.400/0.400/0.400  0.4/0.4/0.4" in text.splitlines()[10]
    summary = json.loads((tmp_path / "scores.json").read_text())["summary"]["hd95_TC"]
    assert summary == {"mean": pytest.approx(0.4), "lowest": 0.0, "highest": 0.8}
    for written in (text, page, (tmp_path / "scores.json").read_text()):
        assert "interval" not in written


def test_from_ten_cases_on_the_mean_has_an_interval(tmp_path: Path) -> None:
    results = Results(make_cases(10))
    results.write(tmp_path)
    assert [line.split("  ")[0] for line in results.text().splitlines()] == [
        *("WT/TC/ET of 10", "mean", "95 % interval, from", "to")
    ]
    summary = json.loads((tmp_path / "scores.json").read_text())["summary"]["dice_WT"]
    assert summary["mean"] == pytest.approx(0.45)
    assert 0 < summary["low"] < summary["mean"] < summary["high"] < 0.9
    assert "95 % bootstrap interval" in write(tmp_path, results)


def test_a_small_volume_is_not_written_as_none_and_a_small_loss_not_as_minus_nothing() -> None:
    assert [milliliters(value) for value in (0.0, 0.000125, 0.027, 0.9996, 1.0, 123.45)] == [
        *("0.0", "0.0001", "0.027", "1.000", "1.0", "123.5")
    ]
    assert digits("dice_WT", -0.0001) == "0.000"
    assert digits("hd95_WT", -0.04) == "0.0"


def test_a_fall_of_a_volume_is_written_by_as_many_digits_as_a_rise() -> None:
    values = (0.04, 1.26, 0.0, -0.04, -0.4, -1.26)
    assert [digits("false_ml_ET", value) for value in values] == ["0.040", "1.3", "0.0", "-0.040", "-0.400", "-1.3"]


def test_the_csv_has_a_row_per_case_and_reads_back_without_those_that_failed(tmp_path: Path) -> None:
    Results([make_case("b", 0.5, "p"), FAILED, make_case("a", 1.0)]).write(tmp_path)
    with open(tmp_path / "scores.csv", newline="") as file:
        first, second, third = list(csv.DictReader(file))
    assert (first["case"], second["case"], second["patient"], third["case"]) == ("a", "b", "p", "torn")
    assert (second["lesion_hd95_ET"], second["pred_ml_WT"], second["error"]) == ("0.5000", "0.5000", "")
    assert (third["dice_WT"], third["error"]) == ("", "case torn: no <file>")
    assert read_scores(tmp_path / "scores.csv") == {
        name: dict.fromkeys(COLUMNS, v) for name, v in (("a", 1), ("b", 0.5))
    }


def test_scores_that_a_spreadsheet_saved_are_read(tmp_path: Path) -> None:
    Results([make_case("a", 1.0)]).write(tmp_path)
    scores = read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text((tmp_path / "scores.csv").read_text(), encoding="utf-8-sig")
    assert read_scores(tmp_path / "scores.csv") == scores


@pytest.mark.parametrize(("cell", "got"), [("", "''"), ("0,5", "'0,5'")], ids=["blank", "with a comma"])
def test_a_score_that_is_no_number_is_named_with_its_case_and_file(tmp_path: Path, cell: str, got: str) -> None:
    Results([make_case("a", 1.0), make_case("b", 0.5)]).write(tmp_path)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.reader(file))
    rows[2][rows[0].index("hd95_TC")] = cell
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ValueError, match=rf"^case b: .*scores\.csv: hd95_TC must be a number, got {got}$"):
        read_scores(tmp_path / "scores.csv")


def test_two_evaluations_are_compared_by_the_cases_they_share(tmp_path: Path) -> None:
    Results([make_case("a", 0.5), make_case("b", 0.5), make_case("z", 0.0)]).write(tmp_path)
    results = Results([make_case("a", 0.6), make_case("b", 0.8), make_case("c", 0.9)], tmp_path / "scores.csv")
    results.write(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "scores.json").read_text())["differences"]
    # Differences 0.1 and 0.3: mean 0.2, standard deviation 0.1414, standard error 0.1.
    assert written["summary"]["dice_WT"] == {"mean": pytest.approx(0.2), "standard_error": pytest.approx(0.1)}
    assert written["cases"]["b"]["hd95_ET"] == pytest.approx(0.3)
    assert sorted(written["cases"]) == ["a", "b"]
    assert "difference of 2" in results.text()
    assert "0.200 <small>± 0.100</small>" in write(tmp_path, results)


def test_an_evaluation_does_not_differ_from_its_own_file(tmp_path: Path) -> None:
    cases = [make_case("a", 1 / 3), make_case("b", 2 / 3), make_case("c", 0.000125)]  # 0.3333, 0.6667, 0.0001 there
    Results(cases).write(tmp_path)
    differences = Results(cases, tmp_path / "scores.csv").differences
    assert differences is not None
    assert not differences.cases.any()
    assert not differences.error.any()


def test_two_scans_of_one_patient_are_compared_as_one(tmp_path: Path) -> None:
    Results([make_case("a", 0.5), make_case("b", 0.5)]).write(tmp_path)
    results = Results([make_case("a", 0.6, "p"), make_case("b", 0.8, "p")], tmp_path / "scores.csv")
    assert results.differences is not None
    assert results.differences.mean[0] == pytest.approx(0.2)
    assert np.isnan(results.differences.error).all()


def test_one_shared_case_has_a_difference_without_an_error(tmp_path: Path) -> None:
    Results([make_case("a", 0.5)]).write(tmp_path)
    Results([make_case("a", 0.6)], tmp_path / "scores.csv").write(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "scores.json").read_text())["differences"]
    assert written["summary"]["dice_WT"] == {"mean": pytest.approx(0.1), "standard_error": None}
    results = Results([make_case("a", 0.6)], tmp_path / "scores.csv")
    assert results.text().splitlines()[-1].split() == ["standard", "error", *["-/-/-"] * 7]
    assert "0.100 <small>± -</small>" in write(tmp_path, results)


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.csv, which does not exist"):
        Results([make_case("a", 0.5)], tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=rf"got {tmp_path}, which is a folder"):
        Results([make_case("a", 0.5)], tmp_path)
    (tmp_path / "dice.csv").write_text("case,dice_WT\na,1\n")
    with pytest.raises(ValueError, match="must have a column for every metric, lacks dice_TC, dice_ET, hd95_WT"):
        Results([make_case("a", 0.5)], tmp_path / "dice.csv")


def test_a_report_has_no_differences_if_the_cases_to_compare_with_failed(tmp_path: Path) -> None:
    Results([make_case("torn", 0.5)]).write(tmp_path)
    results = Results([make_case("a", 0.5), FAILED], tmp_path / "scores.csv")
    assert (results.differences, results.compared, results.means["dice_WT"]) == (None, [], 0.5)
    assert results.text().splitlines()[-1] == (
        f"not compared: no case was scored both here and in {tmp_path / 'scores.csv'}"
    )
    assert "Difference to" not in write(tmp_path, results)


def test_the_worst_case_comes_first_with_its_picture_and_failed_ones_before_all(tmp_path: Path) -> None:
    page = write(tmp_path, Results([make_case("fine", 0.9), make_case("bad", 0.2), FAILED]))
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["1. bad", "2. fine"]
    assert page.index("case torn: no &lt;file&gt;") < page.index("1. bad")
    assert "2 of 3 cases scored" in page
    assert page.count("data:image/png;base64,") == 2
    assert "The patient's right is on the left" in page
    assert page.count('<a href="#case0">') == page.count('<a href="#case1">') == 6  # three regions in two charts
    bad, fine = page[page.index("1. bad") :].split("2. fine")
    assert 'class="poor">0.200' in bad
    assert 'class="poor"' not in fine


def test_only_the_worst_cases_bring_their_pictures_into_a_large_page(tmp_path: Path) -> None:
    page = write(tmp_path, Results(make_cases(12)), limit=3)
    assert re.findall(r'alt="three planes of (\w+)"', page) == ["case0", "case1", "case2"]
    assert len(re.findall("<h3>", page)) == 12


def test_a_page_without_pictures_has_the_tables_of_all_cases(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", Results(make_cases(3)), None)
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in page
    assert len(re.findall("<h3>", page)) == 3


def test_a_page_without_a_scored_case_names_the_errors(tmp_path: Path) -> None:
    results = Results([FAILED])
    results.write(tmp_path)
    assert "case torn: no &lt;file&gt;" in write(tmp_path, results)
    assert results.means == {}
    assert results.text().splitlines()[-1] == "not scored: case torn: no <file>"


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    page = write(tmp_path, Results([make_case("<b>&\"'", 0.5), FAILED]))
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"\s)>]*)', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "default-src 'none'" in page
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert "<b>&\"'" not in page


def test_a_screen_narrower_than_a_table_scrolls_the_table_alone(tmp_path: Path) -> None:
    page = write(tmp_path, Results([make_case("fine", 0.9), make_case("bad", 0.2)]))
    tables = page.count("<table")
    assert page.count('<div class="wide"><table>') == page.count("</table></div>") == tables == 1 + 2  # means, cases


def test_a_browser_without_a_network_shows_the_page(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    write(tmp_path, Results([make_case("fine", 0.9), make_case("bad", 0.2), FAILED]))
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --disable-background-networking"
    quiet = "--disable-component-update --disable-sync --window-size=1200,1700"
    folder, shot = f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"  # no name leads anywhere
    words = [chromium, *flags.split(), *quiet.split(), folder, shot, offline, (tmp_path / "report.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    picture = imread(tmp_path / "shot.png")[..., :3]
    red = (picture == (1, 0, 0)).all(-1).sum()
    assert red > 2 * 600 * 300  # both pictures, as wide as the page
    poor = np.isclose(picture, np.array([0xFF, 0xC9, 0xBD]) / 255, atol=0.002).all(-1).sum()
    assert poor > 9 * 40 * 20  # the cells of a table: three metrics below 0.5 in three regions
    blue = (np.abs(picture - np.array([0x24, 0x77, 0xB3]) / 255).max(-1) < 0.4) & (
        picture[..., 2] > picture[..., 0] + 0.2
    )
    assert blue.sum() > 12 * 40  # a dot per case, region and chart
