"""Statistics over cases: means with their range or their bootstrap interval, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MIN_PATIENTS", "Differences", "Summary", "paired_differences", "summarize"]

MIN_PATIENTS = 10
"""Number of patients from which on a bootstrap interval is given; fewer have a range."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """
    Means of columns of scores.

    Attributes:
        mean: mean over the cases, shape ``(columns,)``.
        low: lower end of the 95 % interval, or the lowest case.
        high: upper end of the 95 % interval, or the highest case.
        interval: whether there were patients enough for an interval.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    interval: bool


@dataclass(frozen=True)
class Differences:
    """
    Paired differences of columns of scores, first minus second.

    Attributes:
        cases: difference of each case, shape ``(cases, columns)``.
        mean: mean over the cases, shape ``(columns,)``.
        error: standard error of the mean, shape ``(columns,)``; NaN for a single patient. A mean of less than twice
            this is not told from 0.
    """

    cases: np.ndarray
    mean: np.ndarray
    error: np.ndarray


def summarize(scores: np.ndarray, patients: Sequence[str], seed: int = 0) -> Summary:
    """
    Summarize scores by their means and, from ten patients on, percentile bootstrap intervals of the means.

    Args:
        scores: shape ``(cases, columns)``, at least one case.
        patients: the patient of each case. Patients are resampled, each with all its cases, as the scans of one
            patient resemble each other.
        seed: of the 10,000 resamples.

    Returns:
        Means with their intervals, or with the range of the cases if there are fewer than ten patients.
    """
    names, owners = np.unique(np.asarray(patients), return_inverse=True)
    mean = scores.mean(0)
    if len(names) < MIN_PATIENTS:
        return Summary(mean, scores.min(0), scores.max(0), interval=False)
    belongs = owners == np.arange(len(names))[:, None]
    sums, counts = belongs @ scores, belongs.sum(1)
    # How often each patient is drawn, for all resamples at once.
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts)[:, None], [2.5, 97.5], axis=0)
    return Summary(mean, low, high, interval=True)


def paired_differences(scores: np.ndarray, others: np.ndarray, patients: Sequence[str] | None = None) -> Differences:
    """
    Compare two sets of scores of the same cases.

    Args:
        scores: shape ``(cases, columns)``, at least one case.
        others: the scores subtracted, same cases and columns.
        patients: the patient of each case, whose scans are not independent of each other; ``None`` if each case has
            its own.

    Returns:
        Differences of the cases, their means and standard errors.
    """
    cases = scores - others
    mean = cases.mean(0)
    names, owners = np.unique(np.arange(len(cases)) if patients is None else np.asarray(patients), return_inverse=True)
    if len(names) == 1:
        return Differences(cases, mean, np.full(cases.shape[1], np.nan))
    # What a patient's cases add to the sum of all: the variance of a sum of independent ones.
    shares = (owners == np.arange(len(names))[:, None]) @ (cases - mean)
    error = np.sqrt((shares**2).sum(0) * len(names) / (len(names) - 1)) / len(cases)
    return Differences(cases, mean, error)
