"""The order of training: every row once, the same for any number of processes, resumable anywhere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.data import order
from student.data.order import POOL_BYTES, WINDOW_BYTES, BatchReader, ShuffleSizes, epoch_windows, shuffle_sizes
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.arrays import array_specs
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.golden import changed, golden_manifest

ROWS = 43


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder: Path = tmp_path_factory.mktemp("data") / "cache"
    make_synthetic_cache(folder, rows=ROWS, seq_len=4, vocab_size=32, top_k=4, hidden_size=8, rows_per_shard=4)
    return open_cache(folder)


def shards(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@given(
    count=st.integers(1, 400),
    size=st.integers(1, 24),
    window=st.integers(1, 4),
    pool=st.integers(1, 40),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 50),
)
def test_an_epoch_is_a_permutation_in_windows_of_whole_pools(
    count: int, size: int, window: int, pool: int, seed: int, epoch: int
) -> None:
    cut, pool = shards(count, size), max(pool, window)
    windows = epoch_windows(cut, ShuffleSizes(pool, window), seed=seed, epoch=epoch)
    assert sorted(np.concatenate([rows for _, rows in windows])) == list(range(count))
    of_pools: dict[tuple[int, ...], list[int]] = {}
    for members, rows in windows:
        assert len(members) <= pool
        assert len(rows) <= window * size
        of_pools.setdefault(tuple(members), []).extend(rows.tolist())
    for members, rows in of_pools.items():
        assert sorted(rows) == sorted(row for shard in members for row in cut[shard])


def test_rows_beside_each_other_are_far_apart_where_a_pool_is_large() -> None:
    """Of a document as long as a shard, a window of its own shards has all; one of a pool has its share."""

    def most_of_a_shard(pool: int) -> int:
        windows = epoch_windows(shards(64 * 64, 64), ShuffleSizes(pool, 4), seed=7, epoch=0)
        return max(int(np.bincount(rows // 64).max()) for _, rows in windows)

    assert most_of_a_shard(4) == 64
    assert most_of_a_shard(64) <= 16


def test_pools_are_of_one_size() -> None:
    windows = epoch_windows(shards(9 * 8, 8), ShuffleSizes(4, 2), seed=7, epoch=0)
    pools = {tuple(members) for members, _ in windows}
    assert sorted(len(members) for members in pools) == [3, 3, 3]
    assert sorted(shard for members in pools for shard in members) == list(range(9))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        windows = epoch_windows(shards(64, 8), ShuffleSizes(6, 4), seed=seed, epoch=epoch)
        return [int(row) for _, rows in windows for row in rows]

    assert rows(42, 3) == rows(42, 3)
    assert rows(42, 3) != rows(42, 4)
    assert rows(42, 3) != rows(43, 3)


def test_the_order_of_four_shards_at_a_time_is_that_of_the_first_version() -> None:
    """Runs begun then continue in the order they had."""
    windows = epoch_windows(shards(20, 3), ShuffleSizes(4, 4), seed=7, epoch=1)
    assert [members for members, _ in windows] == [[3, 1, 6, 2], [5, 4, 0]]
    assert windows[1][1].tolist() == [12, 2, 14, 1, 17, 0, 15, 16, 13]


@pytest.mark.parametrize(
    ("rows_per_shard", "expected"), [(64, 4), (256, 1), (255, 1), (133, 2), (134, 1), (53, 5), (4096, 1), (1, 11)]
)
def test_a_window_has_the_shards_that_fit_its_bytes_decoded(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, rows_per_shard: int, expected: int
) -> None:
    """Rows of the paper's size, with averaged states of every position and channel in int8."""
    manifest = golden_manifest("sampled")
    manifest = changed(manifest, "rows", seq_len=512, rows_per_shard=rows_per_shard)
    manifest = changed(manifest, "targets", top_k=8, samples=50)
    manifest = changed(changed(manifest, "hidden", stride=1), "teacher", hidden_size=1536)
    row = 513 * 4 + 2 * 512 + 512 * (58 * (4 + 2) + 5 * 4 + 1536 + 24 * 2)
    monkeypatch.setattr(cache, "manifest", manifest)
    assert shuffle_sizes(cache).window == expected
    assert expected * rows_per_shard * row <= WINDOW_BYTES or expected == 1
    assert (expected + 1) * rows_per_shard * row > WINDOW_BYTES or expected == len(cache.commits)


@pytest.mark.parametrize(("shard_bytes", "expected"), [(1, 11), (3 * 10**7, 8), (POOL_BYTES // 3, 3), (10**10, 1)])
def test_a_pool_has_the_shards_that_fit_its_bytes_as_stored(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, expected: int
) -> None:
    monkeypatch.setattr(order, "WINDOW_BYTES", 1)
    monkeypatch.setattr(Cache, "stored_bytes", shard_bytes * len(cache.commits))
    assert shuffle_sizes(cache) == ShuffleSizes(expected, 1)


def test_what_a_cache_takes_is_what_its_files_take(cache: Cache) -> None:
    """Files of arrays, without the records of commits and what all shards have together."""
    folder = Path(cache.path)
    stored = [file for spec in array_specs(cache.manifest) for file in (folder / spec.name / "c").rglob("*")]
    assert cache.stored_bytes == sum(file.stat().st_size for file in stored if file.is_file())


def test_a_reader_keeps_to_the_sizes_it_is_given(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = BatchReader(cache, seed=7, global_batch=10)
    assert before.sizes == ShuffleSizes(11, 11), "all that fits"
    monkeypatch.setattr(order, "POOL_BYTES", 1)
    monkeypatch.setattr(order, "WINDOW_BYTES", 1)
    small = BatchReader(cache, seed=7, global_batch=10)
    assert small.sizes == ShuffleSizes(1, 1)
    assert not np.array_equal(small.rows(0), before.rows(0))
    kept = BatchReader(cache, seed=7, global_batch=10, sizes=before.sizes)
    assert all(np.array_equal(kept.rows(step), before.rows(step)) for step in range(8))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_processes_together_read_the_same_global_batches(cache: Cache, world_size: int) -> None:
    alone = BatchReader(cache, seed=7, global_batch=6)
    together = [BatchReader(cache, seed=7, global_batch=6, rank=r, world_size=world_size) for r in range(world_size)]
    assert alone.batches_per_epoch == ROWS // 6
    for step in range(2 * alone.batches_per_epoch):
        parts = [reader.rows(step) for reader in together]
        assert np.array_equal(np.concatenate(parts), alone.rows(step))


def test_global_batches_are_consecutive_slices_of_the_epochs_order(cache: Cache) -> None:
    reader = BatchReader(cache, seed=7, global_batch=10)
    for epoch in range(3):
        windows = epoch_windows(cache.shards, reader.sizes, seed=7, epoch=epoch)
        whole = np.concatenate([rows for _, rows in windows])
        for batch in range(4):
            step = 4 * epoch + batch
            assert reader.place(step) == (epoch, batch)
            assert np.array_equal(reader.rows(step), whole[10 * batch : 10 * batch + 10])


@given(
    world_size=st.sampled_from([1, 2, 5]), first=st.integers(0, 11), count=st.integers(1, 12), rank=st.integers(0, 4)
)
def test_windows_hold_what_the_steps_read_in_the_order_they_read_it(
    cache: Cache, world_size: int, first: int, count: int, rank: int
) -> None:
    reader = BatchReader(cache, seed=7, global_batch=10, rank=rank % world_size, world_size=world_size)
    windows = list(reader.windows(range(first, first + count)))
    wanted = np.concatenate([reader.rows(step) for step in range(first, first + count)])
    held = np.concatenate([window.rows for window in windows])
    start = int(np.flatnonzero([np.array_equal(held[i : i + len(wanted)], wanted) for i in range(len(held))])[0])
    keys = [(window.epoch, window.first) for window in windows]
    assert keys == sorted(set(keys))
    if world_size == 1:
        assert start < len(windows[0].rows), "the first window is not needed"
        assert len(held) - start - len(wanted) < len(windows[-1].rows), "the last window is not needed"


def test_fewer_rows_than_one_global_batch_is_an_error_with_a_remedy(cache: Cache) -> None:
    with pytest.raises(UserError, match=r"43 rows, fewer than one global batch of 64; lower --training\.micro"):
        BatchReader(cache, seed=7, global_batch=64)
