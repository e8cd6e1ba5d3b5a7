"""The table of an ablation, from rows made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omnet_monai.comparison import Comparison, Row
from omnet_monai.variants import NETWORKS, TABLE, VARIANTS, variants_named

COST = {"parameters": 1234567.0, "passes_per_window": 1.0, "flops_per_case": 2.5e9, "seconds_per_case": 1.25}


def make_row(variant: str, seed: int = 0, budget: str = "steps", cost: dict | None = None, **dice: float) -> Row:
    """A row whose cases have the given Dice in WT, a tenth less in TC, and half of it in ET."""
    regions = {case: [value, value - 0.1, value / 2] for case, value in dice.items()}
    return Row(variant, budget, "test", seed, 10, 60.0, cost or COST, regions)


def cells(comparison: Comparison, variant: str) -> dict[str, str]:
    header, lines = comparison.table()
    return dict(zip(header, lines[comparison.variants.index(variant)], strict=True))


def test_a_line_holds_cost_scores_and_the_papers_numbers() -> None:
    cost = COST | {"passes_per_window": 3.0, "flops_per_case": 7.5e12}
    comparison = Comparison([make_row("mc3", cost=cost, a=0.8, b=0.6), make_row("omnet", a=0.9, b=0.8)], "omnet")
    line = cells(comparison, "mc3")
    assert list(line.values())[:8] == ["MC3", "1,234,567", "3.00", "7,500.0", "1.25", "0.700", "0.600", "0.350"]
    assert line["paper's Dice WT/TC/ET"] == "0.9108/0.7911/0.7953"
    # Cases differ by -0.1 and -0.2: a mean of -0.15, a standard deviation of 0.0707, an error of 0.05. ET: a half.
    assert line["difference WT/TC/ET"] == "-0.150/-0.150/-0.075"
    assert line["resolves"] == "0.100/0.100/0.050"
    # The paper: 0.9108 - 0.9110, 0.7911 - 0.7987, 0.7953 - 0.8087.
    assert line["paper's difference"] == "not resolvable here"
    reference = cells(comparison, "omnet")
    assert [reference[name] for name in ("difference WT/TC/ET", "resolves", "paper's difference")] == ["-"] * 3


def test_a_difference_of_the_paper_stands_where_the_rows_resolve_it() -> None:
    # Cases differ by 0.101 and 0.099: an error of 0.001, a limit of 0.002. The paper: -0.0002, -0.0076, -0.0134.
    rows = [make_row("mc3", a=0.799, b=0.701), make_row("omnet", a=0.9, b=0.8)]
    line = cells(Comparison(rows, "omnet"), "mc3")
    assert line["resolves"] == "0.002/0.002/0.001"
    assert line["paper's difference"] == "not resolvable here / -0.0076 / -0.0134"


def test_a_row_that_the_paper_does_not_have_is_compared_with_nothing() -> None:
    line = cells(Comparison([make_row("cga", a=0.5, b=0.7), make_row("omnet", a=0.5, b=0.6)], "omnet"), "cga")
    assert line["paper's Dice WT/TC/ET"] == line["paper's difference"] == "-"
    assert line["difference WT/TC/ET"] == "+0.050/+0.050/+0.025"


def test_dice_is_a_mean_over_seeds_with_their_deviation() -> None:
    rows = [make_row("omnet", 0, a=0.8, b=0.6), make_row("omnet", 1, a=0.9, b=0.9)]
    comparison = Comparison(rows, "omnet")
    np.testing.assert_allclose(comparison.seed_means("omnet")[:, 0], [0.7, 0.9])
    assert cells(comparison, "omnet")["Dice WT"] == "0.800 ± 0.141"


def test_what_seeds_disagree_on_is_not_resolved_however_alike_the_cases_are() -> None:
    # In both cases one seed gains 0.1 and the other loses 0.1: no case differs, the seeds by an error of 0.1.
    rows = [make_row("omnet", seed, a=0.5, b=0.5) for seed in (0, 1)]
    rows += [make_row("cga", 0, a=0.6, b=0.6), make_row("cga", 1, a=0.4, b=0.4)]
    mean, resolved = Comparison(rows, "omnet").difference("cga")
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(resolved, [0.2, 0.2, 0.1])


def test_folds_together_have_all_their_cases_and_only_common_ones_are_paired() -> None:
    rows = [make_row("omnet", a=0.5, b=0.6), make_row("omnet", c=0.7), make_row("cga", a=0.6, b=0.8)]
    comparison = Comparison(rows, "omnet")
    assert comparison.seed_means("omnet")[0, 0] == pytest.approx(0.6)
    np.testing.assert_allclose(comparison.difference("cga")[0], [0.15, 0.15, 0.075])


def test_one_case_resolves_nothing() -> None:
    comparison = Comparison([make_row("mc1", a=0.1), make_row("omnet", a=0.9)], "omnet")
    assert cells(comparison, "mc1")["resolves"] == "-/-/-"
    assert cells(comparison, "mc1")["paper's difference"] == "not resolvable here"


def test_scores_at_equal_time_have_a_column_of_their_own() -> None:
    rows = [make_row("omnet", a=0.9), make_row("mc3", a=0.8), make_row("se", a=0.8)]
    rows += [replace(make_row("mc3", seed, budget="time", a=0.7), epochs=3 + seed) for seed in (0, 1)]
    comparison = Comparison(rows, "omnet")
    assert cells(comparison, "mc3")["Dice WT"] == "0.800"
    assert cells(comparison, "mc3")["Dice WT/TC/ET, equal time"] == "0.700/0.600/0.350"
    assert cells(comparison, "omnet")["Dice WT/TC/ET, equal time"] == "0.900/0.800/0.450"
    epochs = [cells(comparison, name)["epochs at equal time"] for name in ("mc3", "omnet", "se")]
    assert epochs == ["3.5", "10.0", "-"]
    assert cells(comparison, "se")["Dice WT/TC/ET, equal time"] == "-"  # not run yet
    assert not any("equal time" in name for name in Comparison(rows[:2], "omnet").table()[0])


def test_above_the_table_stands_what_it_resolves_and_below_it_the_caption() -> None:
    rows = [make_row("omnet", a=0.9, b=0.8), make_row("mc3", a=0.8, b=0.6), make_row("se", a=0.9, b=0.8)]
    first, empty, header, marks, *lines, gap, caption = Comparison(rows, "omnet").markdown("Of hand.").splitlines()
    assert first.startswith("Smallest difference in Dice WT/TC/ET that this table resolves: 0.100/0.100/0.050, twice")
    assert "paired differences to OM-Net," in first
    assert first.endswith(" It knows nothing of other seeds.")
    others = [make_row("omnet", seed=1, a=0.9), make_row("mc3", seed=1, a=0.8)]
    assert "other seeds" not in Comparison([*rows, *others], "omnet").markdown("")
    assert (empty, gap, caption) == ("", "", "Of hand.")
    assert header.startswith("| variant | parameters | passes per window |")
    assert len({line.count("|") for line in (header, marks, *lines)}) == 1
    assert [line.split(" | ")[0] for line in lines] == ["| MC3", "| OM-Net", "| OM-Net+SE"]  # the paper's order


def test_without_the_reference_or_another_row_nothing_is_resolved() -> None:
    for variant in ("omnet", "mc3"):
        text = Comparison([make_row(variant, a=0.9, b=0.8)], "omnet").markdown("")
        assert text.startswith("No difference to OM-Net can be taken:"), variant


def test_the_papers_rows_are_run_unless_others_are_named() -> None:
    assert tuple(variants_named()) == TABLE
    assert list(variants_named(["cga", "mc1"])) == ["cga", "mc1"]
    for variant in VARIANTS.values():
        assert set(variant.networks) <= set(NETWORKS), variant.title


def test_unknown_variants_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"variants must be some of mc1, mc2, mc3, .*, cga, .*, got omnet1, MC2"):
        variants_named(["mc1", "omnet1", "MC2"])


def test_scans_of_one_patient_resolve_no_more_than_one_of_them() -> None:
    patients = {"a1": "a", "a2": "a", "a3": "a", "b": "b"}
    alone = [make_row("mc3", a1=0.8, b=0.6), make_row("omnet", a1=0.9, b=0.8)]
    # Differences of patients: -0.1, -0.2. With three equal scans of the first, the second is a quarter of the mean,
    # -0.125; what the patients add to the sum is 3 x 0.025 and -0.075, the error sqrt(2 x 0.075^2 x 2) / 4 = 0.0375.
    thrice = [
        make_row("mc3", a1=0.8, a2=0.8, a3=0.8, b=0.6),
        make_row("omnet", a1=0.9, a2=0.9, a3=0.9, b=0.8),
    ]
    thrice = [replace(row, patients=patients) for row in thrice]
    assert cells(Comparison(alone, "omnet"), "mc3")["resolves"] == "0.100/0.100/0.050"
    line = cells(Comparison(thrice, "omnet"), "mc3")
    assert line["difference WT/TC/ET"].startswith("-0.125/-0.125/")
    assert line["resolves"].startswith("0.075/0.075/")


def test_from_ten_patients_on_a_row_has_an_interval() -> None:
    scores = {f"case{number}": 0.1 * number for number in range(10)}
    comparison = Comparison([make_row("cga", 0, **scores), make_row("cga", 1, **scores)], "cga")
    low, high = map(float, cells(comparison, "cga")["95 % interval WT/TC/ET"].split("/")[0].split("-"))
    # The mean is 0.45, its standard error by the bootstrap sqrt(0.0825 / 10) = 0.091: about 1.96 of them either way.
    assert low == pytest.approx(0.45 - 0.178, abs=0.02)
    assert high == pytest.approx(0.45 + 0.178, abs=0.02)
    # A row that is not finished has no interval beside one that is.
    other = Comparison([make_row("cga", 0, **scores), make_row("se", 0, case0=0.5)], "cga")
    assert cells(other, "se")["95 % interval WT/TC/ET"] == "-"
    nine = dict(list(scores.items())[:9])
    assert "95 % interval WT/TC/ET" not in cells(Comparison([make_row("cga", 0, **nine)], "cga"), "cga")
