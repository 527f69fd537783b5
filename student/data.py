"""Which rows a step reads: an order that depends on (seed, epoch) alone, sliced over processes.

Shards are permuted; windows of a few shards are read whole, which is what the cache does fastest, and their rows
permuted in memory. Consecutive slices of that order are the global batches, so a position (epoch, batch) says
all that resuming takes, and the number of processes only decides who reads which part of a batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cli_common.errors import UserError
from teacher_cache.decode import CachedRows
from teacher_cache.reader import Cache

WINDOW_SHARDS = 4


def epoch_windows(shards: Sequence[range], *, seed: int, epoch: int) -> list[tuple[list[int], NDArray[np.int64]]]:
    """The windows of an epoch in reading order: the indices of their shards, and their rows as they are trained on.

    Every row occurs once. Raw Philox numbers keyed by (seed, epoch) are sorted, since NumPy fixes those
    for good, but not its `permutation`.
    """
    random = np.random.Philox(key=[seed, epoch])
    order = _permutation(random, len(shards))
    windows = []
    for start in range(0, len(shards), WINDOW_SHARDS):
        members = [int(shard) for shard in order[start : start + WINDOW_SHARDS]]
        rows = np.concatenate([np.arange(shards[shard].start, shards[shard].stop) for shard in members])
        windows.append((members, rows[_permutation(random, len(rows))]))
    return windows


class BatchReader:
    """Reads this process's rows of the global batch at any (epoch, position).

    The global batch at `position` is the rows [position * G, (position + 1) * G) of the epoch's order, and
    process r of W reads its r-th slice of G / W rows: put together over processes it is the same batch for
    every W. The rows at the end of an epoch that do not fill a global batch are left out of that epoch.
    """

    def __init__(self, cache: Cache, *, seed: int, global_batch: int, rank: int = 0, world_size: int = 1) -> None:
        if global_batch % world_size:
            raise ValueError(f"a global batch of {global_batch} rows cannot be split over {world_size} processes")
        if len(cache) < global_batch:
            raise UserError(
                f"{cache.path}: {len(cache)} rows, fewer than one global batch of {global_batch}; lower "
                "--training.micro-batch-size or --training.gradient-accumulation, or build a larger cache"
            )
        self._cache, self._shards, self._seed = cache, cache.shards, seed
        self._starts = np.array([shard.start for shard in self._shards])
        self._global, self._local, self._rank = global_batch, global_batch // world_size, rank
        self._epoch = -1
        self._in_memory: dict[int, CachedRows] = {}

    @property
    def batches_per_epoch(self) -> int:
        return len(self._cache) // self._global

    def rows(self, epoch: int, position: int) -> NDArray[np.int64]:
        """Indices (G / W,) of this process's rows in the global batch at `position` of `epoch`."""
        self._start_epoch(epoch)
        first = position * self._global + self._rank * self._local
        return self._order[first : first + self._local]

    def read(self, epoch: int, position: int) -> CachedRows:
        """Those rows, stacked in that order; shards that later batches of the epoch do not need are let go."""
        rows = self.rows(epoch, position)
        self._forget_other_windows(position)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        pieces, places = [], []
        for shard in np.unique(shard_of_row):
            where = np.flatnonzero(shard_of_row == shard)
            pieces.append(self._shard(int(shard)).select(rows[where] - self._starts[shard]))
            places.append(where)
        return _concatenate(pieces).select(np.argsort(np.concatenate(places)))

    def _start_epoch(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        windows = epoch_windows(self._shards, seed=self._seed, epoch=epoch)
        self._order = np.concatenate([rows for _, rows in windows])
        self._window_ends = np.cumsum([len(rows) for _, rows in windows])
        self._window_of = {shard: window for window, (members, _) in enumerate(windows) for shard in members}
        self._epoch = epoch

    def _forget_other_windows(self, position: int) -> None:
        edges = np.array([position * self._global, (position + 1) * self._global - 1])
        first, last = np.searchsorted(self._window_ends, edges, side="right")
        wanted = {shard for shard in self._in_memory if first <= self._window_of[shard] <= last}
        self._in_memory = {shard: rows for shard, rows in self._in_memory.items() if shard in wanted}

    def _shard(self, shard: int) -> CachedRows:
        if shard not in self._in_memory:
            self._in_memory[shard] = self._cache.rows(self._shards[shard])
        return self._in_memory[shard]


def _concatenate(pieces: Sequence[CachedRows]) -> CachedRows:
    columns = {name: [getattr(piece, name) for piece in pieces] for name in vars(pieces[0])}
    joined: dict[str, Any] = {
        name: None if arrays[0] is None else np.concatenate(arrays) for name, arrays in columns.items()
    }
    return CachedRows(**joined)


def _permutation(random: np.random.Philox, count: int) -> NDArray[np.int64]:
    return np.argsort(np.asarray(random.random_raw(count)), kind="stable")
