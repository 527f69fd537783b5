"""Which cache each row of training comes from, where there are several: shares of rows, spread evenly.

Rows of training are counted from 0 over all steps; a row's place says which cache gives it, by the shares alone. The
caches are divided into two groups, those again, down to single caches. Of the first q rows of a group, its first half
gives q times its share of the group, rounded. So up to any row, each of up to four caches is at most one row from its
share, and of eight 1.5 rows. Every `PERIOD` steps repeat: any `PERIOD` consecutive steps have the same numbers of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError

PERIOD = 1000
"""Steps in which each cache gives a whole number of rows, the nearest to its share."""


def rows_per_period(shares: Sequence[float], global_batch: int, names: Sequence[object]) -> tuple[int, ...]:
    """How many of the rows of `PERIOD` steps each cache gives; the largest remainders are rounded up.

    Shares are relative to one another. Raises `UserError`, by the caches' names, for a share that is less than one row.
    """
    quotas = np.asarray(shares, np.float64) / sum(shares) * PERIOD * global_batch
    counts = np.floor(quotas).astype(np.int64)
    missing = PERIOD * global_batch - int(counts.sum())
    counts[np.argsort(counts - quotas, kind="stable")[:missing]] += 1
    for count, name, share in zip(counts, names, shares, strict=True):
        if count == 0:
            raise UserError(
                f"{name}: its share of {share:g} is less than one row of {PERIOD:,} steps; raise it or leave it out"
            )
    return tuple(counts.tolist())


@dataclass(frozen=True)
class Interleaving:
    """The rows of training divided among caches; `counts` are the rows of each in every period."""

    counts: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all rows."""
        return tuple(count / sum(self.counts) for count in self.counts)

    def before(self, cache: int, row: int) -> int:
        """How many of the first `row` rows of training are the cache's."""
        for split in self._splits(cache):
            first = (2 * row * split.first + split.both) // (2 * split.both)
            row = first if split.is_first else row - first
        return row

    def places(self, cache: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which rows of training (n,) are the cache's rows of these numbers (n,): the inverse of `before`."""
        places = numbers
        for split in reversed(self._splits(cache)):
            halves = (2 * places + 1) * split.both
            places = -(-halves // (2 * split.first)) - 1 if split.is_first else halves // (2 * split.second)
        return places

    def _splits(self, cache: int) -> "list[_Split]":
        """From all caches down to one."""
        splits, low, high = [], 0, len(self.counts)
        while high - low > 1:
            middle = (low + high) // 2
            split = _Split(sum(self.counts[low:middle]), sum(self.counts[middle:high]), cache < middle)
            low, high = (low, middle) if split.is_first else (middle, high)
            splits.append(split)
        return splits


@dataclass(frozen=True)
class _Split:
    """Two groups of caches, by the rows that each gives in a period, and which of them a cache is in."""

    first: int
    second: int
    is_first: bool

    @property
    def both(self) -> int:
        return self.first + self.second


ALONE = Interleaving((1,))
"""Of a single cache."""
