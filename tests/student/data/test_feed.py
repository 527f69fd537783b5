"""The feed gives what reading batch by batch gives, reads a shard once, passes errors on, and ends with its user."""

import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from student.data.feed import BATCHES_AHEAD, WINDOWS_AHEAD, Parts, WindowReader, batches_ahead
from student.data.order import BatchReader, ShuffleSizes
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.arrays import array_specs
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows
from tests.helpers.reads import count_reads, note_thinned

ROWS = 71
SHARD = 4
SIZES = ShuffleSizes(8, 4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder: Path = tmp_path_factory.mktemp("feed") / "cache"
    make_synthetic_cache(folder, rows=ROWS, seq_len=4, vocab_size=32, top_k=4, hidden_size=8, rows_per_shard=SHARD)
    return open_cache(folder)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Generator[None, None, None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("background", "shards"))]


def as_read(parts: Parts) -> CachedRows:
    (rows,) = parts
    assert rows is not None
    return rows


def assert_same(read: CachedRows, expected: CachedRows) -> None:
    assert read.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert np.array_equal(read.arrays[name], array), name
        assert read.arrays[name].dtype == array.dtype


@pytest.mark.parametrize(("global_batch", "world_size"), [(10, 1), (2, 1), (70, 1), (6, 3), (20, 2)])
def test_it_gives_what_reading_one_by_one_gives_over_epochs(cache: Cache, global_batch: int, world_size: int) -> None:
    for rank in range(world_size):
        reader = BatchReader(cache, seed=7, global_batch=global_batch, rank=rank, world_size=world_size, sizes=SIZES)
        steps = range(2 * reader.batches_per_epoch + 1)
        with batches_ahead([reader], steps, as_read) as batches:
            for step in steps:
                assert_same(next(batches), reader.read(step))
            with pytest.raises(StopIteration):
                next(batches)


def test_it_may_start_and_end_anywhere(cache: Cache) -> None:
    reader = BatchReader(cache, seed=7, global_batch=10, sizes=SIZES)
    for steps in (range(3, 9), range(6, 7), range(13, 15), range(5, 5)):
        with batches_ahead([reader], steps, as_read) as batches:
            read = list(batches)
        assert len(read) == len(steps)
        for step, rows in zip(steps, read, strict=True):
            assert_same(rows, reader.read(step))


def test_every_shard_is_read_once_an_epoch_and_not_far_ahead(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    rows = Cache.rows
    monkeypatch.setattr(
        Cache, "rows", lambda self, index, **how: (read.append(int(index[0])), rows(self, index, **how))[1]
    )
    reader = BatchReader(cache, seed=7, global_batch=2, sizes=ShuffleSizes(4, 4))
    with batches_ahead([reader], range(reader.batches_per_epoch), as_read) as batches:
        for taken, _ in enumerate(batches, start=1):
            # Windows: the one being trained on, one that the batches made ahead may have begun, and those ahead.
            begun = (2 * (taken + BATCHES_AHEAD + 1) - 1) // (4 * SHARD) + 1
            assert len(read) <= 4 * (begun + WINDOWS_AHEAD)
    assert sorted(read) == [shard.start for shard in cache.shards]


def test_every_object_is_read_once_an_epoch_and_kept_until_its_pool_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"rows": 24 * 16, "seq_len": 4, "vocab_size": 32, "top_k": 4, "hidden_size": 8, "rows_per_shard": 16}
    make_synthetic_cache(tmp_path / "cache", **sizes)
    cache, read = open_cache(tmp_path / "cache"), count_reads(monkeypatch)
    reader = BatchReader(cache, seed=7, global_batch=8, sizes=ShuffleSizes(8, 1))
    with batches_ahead([reader], range(reader.batches_per_epoch), as_read) as batches:
        for _ in batches:
            assert len(cache._held) <= 2 * 8
    assert read == Counter(spec.data_key(shard) for spec in array_specs(cache.manifest) for shard in range(24))
    assert len({tuple(window.pool) for window in reader.windows(range(reader.batches_per_epoch))}) == 3


def test_a_view_thins_each_row_once_an_epoch_and_gives_what_reading_one_by_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"rows": 8 * 16, "seq_len": 4, "vocab_size": 32, "top_k": 4, "hidden_size": 8, "rows_per_shard": 16}
    make_synthetic_cache(tmp_path / "cache", samples=6, **sizes)
    view = open_cache(tmp_path / "cache").view(top_k=2, samples=3)
    reader = BatchReader(view, seed=7, global_batch=8, sizes=ShuffleSizes(8, 1))
    steps = range(reader.batches_per_epoch)
    expected = [reader.read(step) for step in steps]
    thinned = note_thinned(monkeypatch)
    with batches_ahead([reader], steps, as_read) as batches:
        for rows, wanted in zip(batches, expected, strict=True):
            # A sum of exponentials is rounded by where its row lies among the others.
            for name, array in wanted.arrays.items():
                np.testing.assert_allclose(rows.arrays[name], array, rtol=1e-5 if name == "logits/log_mass" else 0)
    assert Counter(thinned) == Counter(range(8 * 16))


def test_only_the_rows_of_this_process_stay_in_memory(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from student.data import feed

    kept: list[int] = []
    stack = feed.stack_rows

    def counting(pieces: list[feed.Piece], wanted: Any) -> CachedRows:
        kept.append(sum(len(piece.rows.tokens) for piece in pieces))
        return stack(pieces, wanted)

    monkeypatch.setattr(feed, "stack_rows", counting)
    reader = BatchReader(cache, seed=7, global_batch=8, rank=1, world_size=4, sizes=SIZES)
    with batches_ahead([reader], range(reader.batches_per_epoch), as_read) as batches:
        list(batches)
    assert max(kept) <= 2 * 4 * SHARD // 4


@pytest.mark.parametrize("global_batch", [5, 10, 16, 40])
def test_two_windows_are_held_or_those_of_one_batch(cache: Cache, global_batch: int) -> None:
    """A batch that ends one window and begins another does not make it three."""
    reader = BatchReader(cache, seed=7, global_batch=global_batch, sizes=SIZES)
    steps, straddling = range(2 * reader.batches_per_epoch), 0
    with ThreadPoolExecutor(1) as loaders:
        windows = WindowReader(reader, steps, loaders)
        for step in steps:
            windows.read(step)
            needed = len(list(reader.windows(range(step, step + 1))))
            assert len(windows._pieces) <= max(needed, 2)
            straddling += needed > 1
    assert straddling > 0 or global_batch == 16


@pytest.mark.timeout(20)
@pytest.mark.parametrize("waiting", [True, False])
def test_an_error_of_a_loader_arrives_as_it_was_raised(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, waiting: bool
) -> None:
    failure = OSError(5, "the disk is gone")

    def failing(self: Cache, index: Any, *, as_stored: bool) -> CachedRows:
        time.sleep(0.2 if waiting else 0)
        raise failure

    monkeypatch.setattr(Cache, "rows", failing)
    reader = BatchReader(cache, seed=7, global_batch=10, sizes=SIZES)
    with batches_ahead([reader], range(4), as_read) as batches:
        time.sleep(0 if waiting else 0.2)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone") as raised:
                next(batches)
            assert raised.value is failure
