"""Which rows a step reads: an order that depends on (seed, epoch) alone, sliced over processes.

Shards are permuted, and taken a pool of some dozens at a time. Their objects are kept in memory as they are stored, for
that is a fraction of what rows take. The pool's rows are permuted, and a window of them is decoded at one time. So rows
that lay beside each other, of one long document for example, are far apart in training. Consecutive slices of that
order are the global batches. The number of steps taken and the sizes of pools and windows are all that resuming needs,
and the number of processes only decides which process reads which part of a batch.

Where training reads several caches, each has such an order by itself, pass after pass, and `interleaving` says which
rows of training come from it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from student.data.interleaving import ALONE, Interleaving
from teacher_cache.format.arrays import row_specs
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows

WINDOW_BYTES = 1 << 28
"""What a window's rows may take, all processes together, in the types they are stored in; one shard may take more."""
POOL_BYTES = 1 << 28
"""What a pool's objects may take in each process, as they are stored; those of a window may take more."""

Windows = list[tuple[list[int], NDArray[np.int64]]]


@dataclass(frozen=True)
class ShuffleSizes:
    """How far rows are mixed, in shards."""

    pool: int
    """Shards whose rows are permuted together."""
    window: int
    """Shards' worth of rows that are decoded at one time."""

    @classmethod
    def recorded(cls, window_shards: int, pool_shards: int | None = None) -> "ShuffleSizes":
        """As a checkpoint has them; one of a version that had no pools says nothing of theirs."""
        return cls(window_shards if pool_shards is None else pool_shards, window_shards)


def shuffle_sizes(cache: Cache, caches: int = 1) -> ShuffleSizes:
    """The window is as many shards as `WINDOW_BYTES` hold decoded, the pool as many as `POOL_BYTES` hold as stored.

    A window is at least 1 shard, a pool at least a window, both at most the cache. Several caches share the bytes. They
    follow from the cache and the number of caches alone, so that every process and every run has the same order.
    """
    items = ((math.prod(spec.row_shape), np.dtype(spec.dtype).itemsize) for spec in row_specs(cache.manifest))
    shard = cache.manifest.rows.rows_per_shard * sum(count * size for count, size in items)
    shards = len(cache.commits)
    window = max(1, min(shards, WINDOW_BYTES // (caches * shard)))
    pool = min(shards, POOL_BYTES * shards // (caches * cache.stored_bytes))
    return ShuffleSizes(max(window, pool), window)


def epoch_windows(shards: Sequence[range], sizes: ShuffleSizes, *, seed: int, epoch: int, number: int = 0) -> Windows:
    """The windows of an epoch in reading order: each one's pool of shards by index, and its rows in order.

    Every row occurs once. The order is that of raw Philox numbers keyed by (seed, epoch): NumPy keeps those the same in
    every version, but not its `permutation`. `number` is the cache's among several, which have numbers of their own.
    Where a pool is no more than a window, the order is that of versions that had no pools.
    """
    random = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, number])
    windows: Windows = []
    for pool in _pools(_permutation(random, len(shards)), sizes):
        rows = np.concatenate([np.arange(shards[shard].start, shards[shard].stop) for shard in pool])
        rows = rows[_permutation(random, len(rows))]
        windows += [(pool, window) for window in np.array_split(rows, -(-len(pool) // sizes.window))]
    return windows


def _pools(order: NDArray[np.int64], sizes: ShuffleSizes) -> list[list[int]]:
    """Shards in order, a pool at a time: of one size, so that the last is not a small one that mixes little."""
    if sizes.pool > sizes.window:
        return [pool.tolist() for pool in np.array_split(order, -(-len(order) // sizes.pool))]
    return [order[first : first + sizes.pool].tolist() for first in range(0, len(order), sizes.pool)]


@dataclass(frozen=True)
class Window:
    """What one process decodes at one time: its rows of some shards, in the order of a pass over the cache."""

    epoch: int
    """The pass, from 0."""
    first: int
    """Where the window begins in the pass, counted in rows."""
    last: int
    """Where it ends there, exclusive."""
    pool: list[int]
    """The shards of its pool; none where the pool has no other window."""
    shards: list[int]
    """Those that this process's rows lie in."""
    rows: NDArray[np.int64]
    """This process's rows."""


@dataclass(frozen=True)
class Mixed:
    """One of several caches that training reads, as its reader sees it."""

    interleaving: Interleaving
    number: int
    """The cache's, from 0."""
    rows: int
    """Of all the caches together: what an epoch reads."""


class BatchReader:
    """Reads this process's rows of the global batch of any step.

    Steps count from 0 over all epochs. The p-th global batch of an epoch is the rows [p * G, (p + 1) * G) of the
    epoch's order, and process r of W reads the r-th slice of G / W rows: over all processes it is the same batch for
    every W. Rows at the end of an epoch that do not fill a global batch are left out of that epoch.

    Of several caches (`mixed`) each has a reader, which reads that cache's rows of the global batch. There an epoch has
    as many rows as all caches together. A cache's own order goes on from one pass to the next, leaving out no row.

    A run that began with other sizes of pools and windows keeps its order if `sizes` gives those.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        sizes: ShuffleSizes | None = None,
        mixed: Mixed | None = None,
    ) -> None:
        if global_batch % world_size:
            raise ValueError(f"a global batch of {global_batch} rows cannot be split over {world_size} processes")
        self.cache = cache
        self._seed = seed
        self._global, self._local, self._rank = global_batch, global_batch // world_size, rank
        mixed = mixed or Mixed(ALONE, 0, len(cache))
        self._taken, self._number, self._epoch_rows = mixed.interleaving, mixed.number, mixed.rows
        caches = len(self._taken.counts)
        self._is_mixed = caches > 1
        self._require_rows()
        self.sizes = sizes or shuffle_sizes(cache, caches)
        self._pass_rows = len(cache) if self._is_mixed else len(cache) // global_batch * global_batch
        self._orders: dict[int, _PassOrder] = {}

    @property
    def batches_per_epoch(self) -> int:
        return self._epoch_rows // self._global

    @property
    def share(self) -> float:
        """Of the rows of training."""
        return self._taken.shares[self._number]

    @property
    def pool_rows(self) -> int | None:
        """Rows that are permuted together; None where those are all."""
        pool = self.sizes.pool
        return None if pool >= len(self.cache.commits) else pool * self.cache.manifest.rows.rows_per_shard

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, number of the global batch in that epoch), both from 0, of a step."""
        return divmod(step, self.batches_per_epoch)

    def passes(self, steps: int) -> float:
        """Passes over the cache that a number of steps make."""
        return self._before(steps * self._global) / self._pass_rows

    def count(self, step: int) -> int:
        """Rows of the cache in the global batch of a step, over all processes."""
        return len(self._taken_by(range(step, step + 1)))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Indices of this process's rows in the global batch of a step: G / W of them from a single cache."""
        first = step * self._global + self._rank * self._local
        numbers = range(self._before(first), self._before(first + self._local))
        parts = [self._order(number).of(within) for number, within in self._by_pass(numbers)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def read(self, step: int) -> CachedRows:
        """Those rows, stacked in that order: what `batches_ahead` gives, only slower."""
        return self.cache.rows(self.rows(step))

    def windows(self, steps: range) -> Iterator[Window]:
        """The windows that some consecutive steps read from, in the order they are first needed."""
        for number, within in self._by_pass(self._taken_by(steps)):
            for window in self._order(number).windows:
                if window.first < within.stop and within.start < window.last:
                    yield window

    def _before(self, row: int) -> int:
        """Rows of the cache among the first `row` rows of training."""
        return self._taken.before(self._number, row)

    def _taken_by(self, steps: range) -> range:
        """The rows of the cache that all processes read in these steps, counted over all passes."""
        return range(self._before(steps.start * self._global), self._before(steps.stop * self._global))

    def _by_pass(self, numbers: range) -> Iterator[tuple[int, range]]:
        """Rows counted over all passes, as (pass, rows within the pass)."""
        while numbers:
            number, first = divmod(numbers.start, self._pass_rows)
            count = min(len(numbers), self._pass_rows - first)
            yield number, range(first, first + count)
            numbers = numbers[count:]

    def _order(self, number: int) -> "_PassOrder":
        if number not in self._orders:
            # Reading ahead may have begun the next pass while the last batches of this one are put together.
            self._orders = {known: order for known, order in self._orders.items() if known == number - 1}
            self._orders[number] = self._cut(number)
        return self._orders[number]

    def _cut(self, number: int) -> "_PassOrder":
        windows, mine, first = [], [], 0
        layout = self.cache.manifest.rows
        cut = epoch_windows(self.cache.shards, self.sizes, seed=self._seed, epoch=number, number=self._number)
        for pool, rows in cut:
            places = np.arange(first, first + len(rows))
            is_mine = (places < self._pass_rows) & self._is_mine(number * self._pass_rows + places)
            ours = rows[is_mine]
            shards = np.unique(ours // layout.rows_per_shard).tolist()
            shared = pool if len(pool) > self.sizes.window else []
            windows.append(Window(number, first, first + len(rows), shared, shards, ours))
            mine.append(places[is_mine])
            first += len(rows)
        return _PassOrder(windows, np.concatenate(mine), np.concatenate([window.rows for window in windows]))

    def _is_mine(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether this process reads rows of the cache (n,), counted over all passes."""
        places = self._taken.places(self._number, numbers)
        mine: NDArray[np.bool_] = places % self._global // self._local == self._rank
        return mine

    def _require_rows(self) -> None:
        """Raise `UserError` where a step reads more rows of the cache than it has."""
        have, wanted = len(self.cache), self.share * self._global
        if have >= wanted:
            return
        less = "lower --training.micro-batch-size or --training.gradient-accumulation, or build a larger cache"
        if self._is_mixed:
            raise UserError(
                f"{self.cache.path}: {have} rows, and its share of each step is {wanted:g}; lower it or {less}"
            )
        raise UserError(f"{self.cache.path}: {have} rows, fewer than one global batch of {self._global}; {less}")


@dataclass(frozen=True)
class _PassOrder:
    """One pass over a cache, as one process reads it."""

    windows: list[Window]
    places: NDArray[np.int64]
    """Where in the pass this process's rows are, rising."""
    rows: NDArray[np.int64]
    """This process's rows."""

    def of(self, within: range) -> NDArray[np.int64]:
        """Those of this process's rows that lie in a part of the pass."""
        first, last = np.searchsorted(self.places, (within.start, within.stop))
        return self.rows[first:last]


def _permutation(random: np.random.Philox, count: int) -> NDArray[np.int64]:
    return np.argsort(np.asarray(random.random_raw(count)), kind="stable")
