"""Batches made ahead: some threads read shards, another puts batches together.

Threads suffice, without forking beside torch: pcodec, zstd, NumPy and torch release Python's lock while they decode,
copy and cast. Memory holds this process's rows of two windows, the one that the next batch reads from and the one after
it, or of as many as a batch reads from if those are more; these windows' pools, as they are stored; chunks of one or
two shards being decoded; and a few finished batches. Of several caches it is all that of each, the smaller for it
(`shuffle_sizes`).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from delta_common.background import Background
from student.data.order import BatchReader, Window
from teacher_cache.read.decode import CachedRows

BATCHES_AHEAD = 3
WINDOWS_AHEAD = 1
LOADERS = 2

T = TypeVar("T")


Parts = tuple[CachedRows | None, ...]
"""A process's rows of a global batch, by cache; None where it has none of a cache."""


def batches_ahead(
    readers: Sequence[BatchReader], steps: range, prepare: Callable[[Parts], T]
) -> AbstractContextManager[Iterator[T]]:
    """`prepare` of what the caches' readers read at each step, computed ahead by threads; use it in a `with` statement.

    An error of a reader or of `prepare` is raised, unchanged, by the consumer's next call.
    """
    return Background(_prepared(readers, steps, prepare), BATCHES_AHEAD)


@dataclass(frozen=True)
class Piece:
    """The n rows of one shard that this process trains on in an epoch, and their numbers (n,), rising."""

    numbers: NDArray[np.int64]
    rows: CachedRows


class WindowReader:
    """`BatchReader.read` for consecutive steps; reads each shard once per epoch, and decodes before it is needed."""

    def __init__(self, reader: BatchReader, steps: range, loaders: ThreadPoolExecutor) -> None:
        self._reader, self._steps, self._loaders = reader, steps, loaders
        self._pieces: dict[tuple[int, int], list[Future[Piece]]] = {}

    def load(self, step: int, ahead: int = WINDOWS_AHEAD) -> None:
        """Begin to read the windows of a step and those ahead, let go of all others."""
        held = max(len(list(self._needed(step))), 1 + ahead)
        coming = islice(self._reader.windows(range(step, self._steps.stop)), held)
        wanted = {(window.epoch, window.first): window for window in coming}
        self._pieces = {key: pieces for key, pieces in self._pieces.items() if key in wanted}
        self._reader.cache.hold({shard for window in wanted.values() for shard in window.pool})
        for key, window in wanted.items():
            if key not in self._pieces:
                self._pieces[key] = [self._loaders.submit(self._load, window, shard) for shard in window.shards]

    def read(self, step: int) -> CachedRows | None:
        """This process's rows of the global batch of `step`, as `BatchReader.read` stacks them; None without any."""
        self.load(step)
        rows = self._reader.rows(step)
        if not len(rows):
            return None
        needed = (self._pieces[window.epoch, window.first] for window in self._needed(step))
        return stack_rows([future.result() for pieces in needed for future in pieces], rows)

    def _needed(self, step: int) -> Iterator[Window]:
        return self._reader.windows(range(step, step + 1))

    def _load(self, window: Window, shard: int) -> Piece:
        cache = self._reader.cache
        within = cache.manifest.shard_rows(shard)
        numbers = np.sort(window.rows[(window.rows >= within.start) & (window.rows < within.stop)])
        decoded = cache.whole_chunks(numbers)
        rows = cache.rows(decoded, as_stored=True)
        # Thinning a row takes longer than decoding it, and of some chunks only few rows are wanted.
        wanted = rows if len(numbers) == len(decoded) else rows.select(np.searchsorted(decoded, numbers))
        return Piece(numbers, cache.thinned(wanted, numbers))


def stack_rows(pieces: list[Piece], wanted: NDArray[np.int64]) -> CachedRows:
    """The rows numbered `wanted` (n,) out of the pieces, in that order; each is copied once."""
    numbers = np.concatenate([piece.numbers for piece in pieces])
    sources = [(piece.rows, place) for piece in pieces for place in range(len(piece.numbers))]
    order = np.argsort(numbers)
    found = [sources[index] for index in order[np.searchsorted(numbers, wanted, sorter=order)]]
    first = pieces[0].rows
    arrays = {name: np.stack([rows.arrays[name][place] for rows, place in found]) for name in first.arrays}
    return CachedRows(first.manifest, arrays)


def _prepared(readers: Sequence[BatchReader], steps: range, prepare: Callable[[Parts], T]) -> Generator[T, None, None]:
    loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="shards")
    try:
        windows = [WindowReader(reader, steps, loaders) for reader in readers]
        for step in steps:
            if step == steps.start and len(windows) > 1:  # what all caches begin with, before what any goes on with
                for each in windows:
                    each.load(step, ahead=0)
            yield prepare(tuple(each.read(step) for each in windows))
    finally:
        loaders.shutdown(wait=True, cancel_futures=True)
