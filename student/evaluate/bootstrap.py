"""Means over positions, with intervals from resampling whole documents: a document's positions are not independent."""

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
class Interval:
    """A held-out number and its 95 % interval; both ends are None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None
    at_least: bool = False
    """Whether `value` is only a lower bound: the cache does not hold enough of the teacher for more."""


def intervals(sums: NDArray[np.float64], statistic: Statistic, *, distances: int = 0, seed: int = 0) -> list[Interval]:
    """The statistic of all documents' sums (D, m), with an interval for each of its k values.

    A resample draws D documents with replacement; the interval spans the middle 95 % of the statistic over the
    resamples. The last `distances` values are sums of absolute differences, such as a calibration error. These are
    larger in a resample than in the sample it comes from, so their interval is shifted until the resamples' mean is the
    value itself, and cut off at 0. A single document has no interval.
    """
    values = statistic(sums.sum(axis=0))
    if len(sums) < 2:
        return [Interval(float(value)) for value in values]
    found = _resampled(sums, statistic, seed)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    moved = np.arange(len(values)) >= len(values) - distances
    shift = np.where(moved, values - found.mean(axis=0), 0.0)
    low = np.where(moved, np.maximum(low + shift, 0.0), low)
    ends = zip(values.tolist(), low.tolist(), (high + shift).tolist(), strict=True)
    return [Interval(*three) for three in ends]


def _resampled(sums: NDArray[np.float64], statistic: Statistic, seed: int) -> NDArray[np.float64]:
    """The statistic of every resample, (RESAMPLES, k)."""
    count = len(sums)
    random = np.random.Generator(np.random.Philox(key=seed))
    shares = np.full(count, 1 / count)
    parts = []
    for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        drawn = random.multinomial(count, shares, size=RESAMPLES_AT_ONCE).astype(np.float64)
        parts.append(statistic(drawn @ sums))
    return np.concatenate(parts)
