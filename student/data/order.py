"""Which rows a step reads: an order that depends on (seed, epoch) alone, sliced over processes.

Shards are permuted, and taken a window of a few at a time: shards are read whole, which is fastest, and the rows of a
window are permuted in memory. Consecutive slices of that order are the global batches. So the number of steps taken and
of shards in a window are all that resuming needs, and the number of processes only decides which process reads which
part of a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache.format.arrays import row_specs
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows

MOST_SHARDS = 4
"""Shards of a window where memory allows."""
WINDOW_BYTES = 1 << 28
"""What a window's rows may take, all processes together, in the types they are stored in; one shard may take more."""

Windows = list[tuple[list[int], NDArray[np.int64]]]


def shards_per_window(manifest: Manifest) -> int:
    """Shards that training permutes the rows of at one time: 4, or as many as `WINDOW_BYTES` hold, but at least 1.

    It follows from the manifest alone, so that every process and every run over the cache has the same order.
    """
    items = ((math.prod(spec.row_shape), np.dtype(spec.dtype).itemsize) for spec in row_specs(manifest))
    shard = manifest.rows.rows_per_shard * sum(count * size for count, size in items)
    return max(1, min(MOST_SHARDS, WINDOW_BYTES // shard))


def epoch_windows(shards: Sequence[range], size: int, *, seed: int, epoch: int) -> Windows:
    """The windows of an epoch, of `size` shards, in reading order: each one's shards by index, and its rows in order.

    Every row occurs once. The order is that of raw Philox numbers keyed by (seed, epoch): NumPy keeps those the same in
    every version, but not its `permutation`.
    """
    random = np.random.Philox(key=[seed, epoch])
    order = _permutation(random, len(shards))
    windows = []
    for start in range(0, len(shards), size):
        members = [int(shard) for shard in order[start : start + size]]
        rows = np.concatenate([np.arange(shards[shard].start, shards[shard].stop) for shard in members])
        windows.append((members, rows[_permutation(random, len(rows))]))
    return windows


@dataclass(frozen=True)
class Window:
    """What one process reads at one time: its rows of a few shards, in the order of an epoch."""

    epoch: int
    first: int
    """Where the window begins in the epoch's order, counted in rows."""
    last: int
    """Where it ends there, exclusive."""
    shards: list[int]
    rows: NDArray[np.int64]
    """This process's rows among them."""


class BatchReader:
    """Reads this process's rows of the global batch of any step.

    Steps count from 0 over all epochs. The p-th global batch of an epoch is the rows [p * G, (p + 1) * G) of the
    epoch's order, and process r of W reads the r-th slice of G / W rows: over all processes it is the same batch for
    every W. Rows at the end of an epoch that do not fill a global batch are left out of that epoch.

    A run that began with another number of shards in a window keeps its order if `window_shards` gives that number.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        window_shards: int | None = None,
    ) -> None:
        if global_batch % world_size:
            raise ValueError(f"a global batch of {global_batch} rows cannot be split over {world_size} processes")
        if len(cache) < global_batch:
            raise UserError(
                f"{cache.path}: {len(cache)} rows, fewer than one global batch of {global_batch}; lower "
                "--training.micro-batch-size or --training.gradient-accumulation, or build a larger cache"
            )
        self.cache = cache
        self.window_shards = window_shards or shards_per_window(cache.manifest)
        self._seed = seed
        self._global, self._local, self._rank = global_batch, global_batch // world_size, rank
        self._orders: dict[int, _EpochOrder] = {}

    @property
    def batches_per_epoch(self) -> int:
        return len(self.cache) // self._global

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, number of the global batch in that epoch), both from 0, of a step."""
        return divmod(step, self.batches_per_epoch)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Indices (G / W,) of this process's rows in the global batch of a step."""
        epoch, batch = self.place(step)
        return self._order(epoch).rows[batch * self._local : (batch + 1) * self._local]

    def read(self, step: int) -> CachedRows:
        """Those rows, stacked in that order: what `batches_ahead` gives, only slower."""
        return self.cache.rows(self.rows(step))

    def windows(self, steps: range) -> Iterator[Window]:
        """The windows that some consecutive steps read from, in the order they are first needed."""
        while steps:
            epoch, batch = self.place(steps.start)
            count = min(len(steps), self.batches_per_epoch - batch)
            first, last = batch * self._global, (batch + count) * self._global
            for window in self._order(epoch).windows:
                if window.first < last and first < window.last:
                    yield window
            steps = steps[count:]

    def _order(self, epoch: int) -> "_EpochOrder":
        if epoch not in self._orders:
            # Reading ahead may have begun the next epoch while the last batches of this one are put together.
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            windows = self._cut(epoch)
            self._orders[epoch] = _EpochOrder(windows, np.concatenate([window.rows for window in windows]))
        return self._orders[epoch]

    def _cut(self, epoch: int) -> list[Window]:
        windows, first = [], 0
        for shards, rows in epoch_windows(self.cache.shards, self.window_shards, seed=self._seed, epoch=epoch):
            places = np.arange(first, first + len(rows))
            whole = places < self.batches_per_epoch * self._global
            mine = places % self._global // self._local == self._rank
            windows.append(Window(epoch, first, first + len(rows), shards, rows[whole & mine]))
            first += len(rows)
        return windows


@dataclass(frozen=True)
class _EpochOrder:
    windows: list[Window]
    rows: NDArray[np.int64]


def _permutation(random: np.random.Philox, count: int) -> NDArray[np.int64]:
    return np.argsort(np.asarray(random.random_raw(count)), kind="stable")
