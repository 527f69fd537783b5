"""The order of training: every row once, the same for any number of processes, resumable anywhere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.data.order import WINDOW_SHARDS, BatchReader, epoch_windows
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache

ROWS = 43


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder: Path = tmp_path_factory.mktemp("data") / "cache"
    make_synthetic_cache(folder, rows=ROWS, seq_len=4, vocab_size=32, top_k=4, hidden_size=8, rows_per_shard=4)
    return open_cache(folder)


def shards(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@given(count=st.integers(1, 200), size=st.integers(1, 17), seed=st.integers(0, 2**63), epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation_in_windows_of_whole_shards(count: int, size: int, seed: int, epoch: int) -> None:
    cut = shards(count, size)
    windows = epoch_windows(cut, seed=seed, epoch=epoch)
    assert sorted(np.concatenate([rows for _, rows in windows])) == list(range(count))
    for members, rows in windows:
        assert len(members) <= WINDOW_SHARDS
        assert sorted(rows) == sorted(row for shard in members for row in cut[shard])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for _, rows in epoch_windows(shards(64, 8), seed=seed, epoch=epoch) for row in rows]

    assert order(42, 3) == order(42, 3)
    assert order(42, 3) != order(42, 4)
    assert order(42, 3) != order(43, 3)


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
        order = np.concatenate([rows for _, rows in epoch_windows(cache.shards, seed=7, epoch=epoch)])
        for batch in range(4):
            step = 4 * epoch + batch
            assert reader.place(step) == (epoch, batch)
            assert np.array_equal(reader.rows(step), order[10 * batch : 10 * batch + 10])


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
