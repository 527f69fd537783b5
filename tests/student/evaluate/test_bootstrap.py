"""Intervals against known truths."""

import numpy as np
from numpy.typing import NDArray

from student.evaluate.bootstrap import Interval, intervals


def a_mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums[..., 1:] / sums[..., :1]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """300 samples of 60 documents of unequal length around a mean of 2: about 95 % of the intervals hold it."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        lengths = random.integers(1, 40, 60)
        levels = 2 + 0.5 * random.standard_normal(60)
        sums = np.stack([lengths, lengths * levels], axis=1).astype(float)
        (found,) = intervals(sums, a_mean)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_intervals_are_seeded_and_one_document_has_none() -> None:
    sums = np.random.default_rng(2).random((9, 2)) + 1
    assert intervals(sums, a_mean) == intervals(sums, a_mean)
    assert intervals(sums, a_mean, seed=1) != intervals(sums, a_mean)
    assert intervals(sums[:1], a_mean) == [Interval(float(sums[0, 1] / sums[0, 0]))]
