"""Means over positions with confidence intervals from resampling whole documents, which positions come in."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100
CONFIDENCE = 0.95

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From sums over documents (..., m) to values (..., k)."""


@dataclass(frozen=True)
class Estimate:
    """A held-out number and its 95 % interval; without an interval both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None
    at_least: bool = False
    """The true number is this or more: what is cached of the teacher says no more."""


def intervals(sums: NDArray[np.float64], statistic: Statistic, *, seed: int = 0) -> list[Estimate]:
    """The statistic of all documents' sums (D, m), with an interval for each of its k values.

    Documents are drawn with replacement, as many as there are; the interval holds the middle 95 % of the statistic
    over the resamples, moved so that their mean is the value itself: a calibration error is larger in a resample
    than in what it was drawn from, and would else lie outside its own interval. One document has none.
    """
    values = statistic(sums.sum(axis=0))
    count = len(sums)
    if count < 2:
        return [Estimate(float(value)) for value in values]
    random = np.random.Generator(np.random.Philox(key=seed))
    shares = np.full(count, 1 / count)
    parts = []
    for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        drawn = random.multinomial(count, shares, size=RESAMPLES_AT_ONCE).astype(np.float64)
        parts.append(statistic(drawn @ sums))
    found = np.concatenate(parts)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    shift = values - found.mean(axis=0)
    ends = zip(values.tolist(), (low + shift).tolist(), (high + shift).tolist(), strict=True)
    return [Estimate(*three) for three in ends]
