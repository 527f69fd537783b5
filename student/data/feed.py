"""Batches made ahead: some threads read shards, another puts batches together.

Threads suffice, without forking beside torch: pcodec, zstd, NumPy and torch release Python's lock while they decode,
copy and cast. Memory holds this process's rows of two windows, the one that the next batch reads from and the one after
it, or of as many as a batch reads from if those are more; one or two shards being decoded; and a few finished batches.
"""

from collections.abc import Callable, Generator, Iterator
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


def batches_ahead(
    reader: BatchReader, steps: range, prepare: Callable[[CachedRows], T]
) -> AbstractContextManager[Iterator[T]]:
    """`prepare(reader.read(step))` for each step, computed ahead by threads; use it in a `with` statement.

    An error of the reader or of `prepare` is raised, unchanged, by the consumer's next call.
    """
    return Background(_prepared(reader, steps, prepare), BATCHES_AHEAD)


@dataclass(frozen=True)
class Piece:
    """The n rows of one shard that this process trains on in an epoch, and their numbers (n,), rising."""

    numbers: NDArray[np.int64]
    rows: CachedRows


class WindowReader:
    """`BatchReader.read` for consecutive steps; reads each shard whole, once per epoch, before it is needed."""

    def __init__(self, reader: BatchReader, steps: range, loaders: ThreadPoolExecutor) -> None:
        self._reader, self._steps, self._loaders = reader, steps, loaders
        self._pieces: dict[tuple[int, int], list[Future[Piece]]] = {}

    def read(self, step: int) -> CachedRows:
        """This process's rows of the global batch of `step`, as `BatchReader.read` stacks them."""
        needed = list(self._reader.windows(range(step, step + 1)))
        held = max(len(needed), 1 + WINDOWS_AHEAD)
        coming = islice(self._reader.windows(range(step, self._steps.stop)), held)
        wanted = {(window.epoch, window.first): window for window in coming}
        self._pieces = {key: pieces for key, pieces in self._pieces.items() if key in wanted}
        for key, window in wanted.items():
            if key not in self._pieces:
                self._pieces[key] = [self._loaders.submit(self._load, window, shard) for shard in window.shards]
        pieces = [future.result() for window in needed for future in self._pieces[window.epoch, window.first]]
        return stack_rows(pieces, self._reader.rows(step))

    def _load(self, window: Window, shard: int) -> Piece:
        within = self._reader.cache.shards[shard]
        numbers = np.sort(window.rows[(window.rows >= within.start) & (window.rows < within.stop)])
        rows = self._reader.cache.rows(within)
        return Piece(numbers, rows if len(numbers) == len(within) else rows.select(numbers - within.start))


def stack_rows(pieces: list[Piece], wanted: NDArray[np.int64]) -> CachedRows:
    """The rows numbered `wanted` (n,) out of the pieces, in that order; each is copied once."""
    numbers = np.concatenate([piece.numbers for piece in pieces])
    sources = [(piece.rows, place) for piece in pieces for place in range(len(piece.numbers))]
    order = np.argsort(numbers)
    found = [sources[index] for index in order[np.searchsorted(numbers, wanted, sorter=order)]]
    first = pieces[0].rows
    arrays = {name: np.stack([rows.arrays[name][place] for rows, place in found]) for name in first.arrays}
    return CachedRows(first.manifest, arrays)


def _prepared(reader: BatchReader, steps: range, prepare: Callable[[CachedRows], T]) -> Generator[T, None, None]:
    loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="shards")
    try:
        windows = WindowReader(reader, steps, loaders)
        for step in steps:
            yield prepare(windows.read(step))
    finally:
        loaders.shutdown(wait=True, cancel_futures=True)
