"""Means, ranges, intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from omnet_monai.summary import paired_differences, summarize


def names(number: int) -> list[str]:
    return [f"p{i}" for i in range(number)]


def test_nine_patients_have_a_range_and_ten_an_interval() -> None:
    scores = np.arange(10.0)[:, None]
    few, enough = summarize(scores[:9], names(9)), summarize(scores, names(10))
    assert not few.interval
    assert (few.mean[0], few.low[0], few.high[0]) == (4.0, 0.0, 8.0)
    assert enough.interval
    assert enough.mean[0] == 4.5
    assert 0.0 < enough.low[0] < 4.5 < enough.high[0] < 9.0


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    scores = np.random.default_rng(1).gamma(2.0, size=(40, 2))
    got = summarize(scores, names(40))
    for column in range(2):
        result = stats.bootstrap(
            (scores[:, column],),
            np.mean,
            n_resamples=10_000,
            method="percentile",
            random_state=np.random.default_rng(2),
        )
        interval = result.confidence_interval
        width = interval.high - interval.low
        assert got.low[column] == pytest.approx(interval.low, abs=0.05 * width)
        assert got.high[column] == pytest.approx(interval.high, abs=0.05 * width)


def test_an_interval_is_the_same_each_time_and_for_another_seed_another() -> None:
    scores = np.random.default_rng(0).random((12, 1))
    first, again, other = (summarize(scores, names(12), seed) for seed in (0, 0, 1))
    assert first.low[0] == again.low[0]
    assert first.low[0] != other.low[0]


def test_patients_are_resampled_with_all_their_scans() -> None:
    # Ten patients of four equal scans say no more than ten single scans do.
    scores = np.random.default_rng(3).random((10, 1))
    single = summarize(scores, names(10))
    fourfold = summarize(np.repeat(scores, 4, axis=0), list(np.repeat(names(10), 4)))
    assert fourfold.low[0] == pytest.approx(single.low[0])
    assert fourfold.high[0] == pytest.approx(single.high[0])
    # Ten scans of nine patients are too few.
    assert not summarize(scores, [*names(9), "p0"]).interval


def test_a_patient_weighs_by_the_number_of_scans_in_the_mean_and_in_the_interval() -> None:
    # Ten scans of 1 by one patient, a scan of 0 by each of nine. Drawn three times, as in 7 % of the resamples, that
    # patient makes the mean 30 / 37; drawn four times, as in 1.3 %, 40 / 46.
    result = summarize(np.array([[1.0]] * 10 + [[0.0]] * 9), ["p0"] * 9 + names(10))
    assert result.mean[0] == pytest.approx(10 / 19)
    assert (result.low[0], result.high[0]) == pytest.approx((0, 30 / 37))


def test_differences_are_paired() -> None:
    # Differences 0.1, 0.3 and 0.2: mean 0.2, standard deviation 0.1, standard error 0.1 / sqrt(3).
    scores, others = np.array([[0.6], [0.9], [0.2]]), np.array([[0.5], [0.6], [0.0]])
    result = paired_differences(scores, others)
    np.testing.assert_allclose(result.cases[:, 0], [0.1, 0.3, 0.2])
    assert result.mean[0] == pytest.approx(0.2)
    assert result.error[0] == pytest.approx(0.1 / 3**0.5)


def test_one_case_has_a_difference_without_an_error() -> None:
    result = paired_differences(np.array([[0.5]]), np.array([[0.25]]))
    assert result.mean[0] == 0.25
    assert np.isnan(result.error[0])


def test_scans_of_a_patient_do_not_count_as_independent_in_the_standard_error() -> None:
    differences = np.array([[0.1], [0.3], [0.2]])
    single = paired_differences(differences, np.zeros((3, 1)), ["a", "b", "c"])
    assert single.error[0] == pytest.approx(0.1 / 3**0.5)
    # Four equal scans of each patient say no more than one does.
    four = paired_differences(np.repeat(differences, 4, 0), np.zeros((12, 1)), list(np.repeat(["a", "b", "c"], 4)))
    assert (four.mean[0], four.error[0]) == (pytest.approx(single.mean[0]), pytest.approx(single.error[0]))
    assert np.isnan(paired_differences(differences, np.zeros((3, 1)), ["a"] * 3).error[0])
