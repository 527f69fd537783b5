"""Several caches in one order: shares kept, each row once a pass, the same for any number of processes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.data import order
from student.data.feed import Parts, batches_ahead
from student.data.mix import readers_of
from student.data.order import BatchReader, ShuffleSizes, shuffle_sizes
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache

ROWS = (43, 12, 30, 7)
BATCH = 12
SHARES = (0.4, 0.3, 0.2, 0.1)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Cache]:
    """Of four sizes; those of odd numbers have other targets, and the last one no states."""
    folder: Path = tmp_path_factory.mktemp("mix")
    common = {"seq_len": 4, "vocab_size": 32, "hidden_size": 8, "rows_per_shard": 4}
    for number, rows in enumerate(ROWS):
        own = {"top_k": 4 + number % 2, "samples": 3 * (number % 2), "hidden": "none" if number == 3 else "int8"}
        make_synthetic_cache(folder / str(number), rows=rows, **own, **common)
    return [open_cache(folder / str(number)) for number in range(len(ROWS))]


def readers(caches: list[Cache], rank: int = 0, world_size: int = 1, batch: int = BATCH) -> tuple[BatchReader, ...]:
    return readers_of(caches, SHARES, seed=7, global_batch=batch, rank=rank, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_processes_together_read_the_same_global_batches(caches: list[Cache], world_size: int) -> None:
    alone = readers(caches)
    together = [readers(caches, rank, world_size) for rank in range(world_size)]
    for step in range(40):
        sizes = [sum(len(reader.rows(step)) for reader in each) for each in together]
        assert sizes == [BATCH // world_size] * world_size
        for number, reader in enumerate(alone):
            parts = np.concatenate([each[number].rows(step) for each in together])
            assert np.array_equal(parts, reader.rows(step))
            assert len(parts) == reader.count(step)


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_pass_reads_every_row_of_a_cache_once(caches: list[Cache], world_size: int) -> None:
    """Also of the last rows, which a single cache leaves out where they fill no batch."""
    together = [readers(caches, rank, world_size) for rank in range(world_size)]
    steps = 120
    for number, cache in enumerate(caches):
        stream = np.concatenate([np.sort(each[number].rows(s)) for s in range(steps) for each in together])
        passes, rest = divmod(len(stream), len(cache))
        assert passes >= 5
        assert together[0][number].passes(steps) == pytest.approx(len(stream) / len(cache))
        counts = Counter(stream.tolist())
        assert set(counts.values()) <= {passes, passes + 1}
        assert sum(count == passes + 1 for count in counts.values()) == rest


def test_caches_do_not_share_an_order(caches: list[Cache]) -> None:
    """Two caches of as many rows, such as of one text by two teachers."""
    first, second = readers_of([caches[0], caches[0]], [1, 1], seed=7, global_batch=8)
    assert not np.array_equal(first.rows(0), second.rows(0))


def test_an_epoch_has_as_many_rows_as_all_caches_together(caches: list[Cache]) -> None:
    assert {reader.batches_per_epoch for reader in readers(caches)} == {sum(ROWS) // BATCH}
    assert readers(caches)[2].place(8) == (1, 1)


def test_a_single_cache_has_its_whole_order_in_the_sizes_it_is_given(caches: list[Cache]) -> None:
    (mixed,) = readers_of(caches[:1], [0.3], seed=7, global_batch=6, sizes=[ShuffleSizes(3, 2)])
    alone = BatchReader(caches[0], seed=7, global_batch=6, sizes=ShuffleSizes(3, 2))
    assert all(np.array_equal(mixed.rows(step), alone.rows(step)) for step in range(20))
    assert mixed.share == 1


def test_caches_share_the_memory_of_windows_and_pools(caches: list[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW_BYTES", 2000)
    monkeypatch.setattr(order, "POOL_BYTES", 13 * caches[0].stored_bytes // (2 * len(caches[0].commits)))
    (alone,) = readers_of(caches[:1], [1], seed=7, global_batch=4)
    mixed = readers(caches)[0].sizes
    assert alone.sizes.pool == 6
    assert mixed == shuffle_sizes(caches[0], len(caches))
    assert mixed.pool < alone.sizes.pool
    assert mixed.window < alone.sizes.window


def as_read(parts: Parts) -> Parts:
    return parts


@settings(max_examples=20, deadline=None)
@given(
    batch=st.sampled_from([4, 12, 24]), world_size=st.sampled_from([1, 2, 4]), first=st.integers(0, 60), data=st.data()
)
def test_the_feed_gives_from_any_step_on_what_reading_gives(
    caches: list[Cache], batch: int, world_size: int, first: int, data: st.DataObject
) -> None:
    each = readers(caches, data.draw(st.integers(0, world_size - 1)), world_size, batch)
    steps = range(first, first + data.draw(st.integers(1, 30)))
    with batches_ahead(each, steps, as_read) as batches:
        for step in steps:
            for reader, part in zip(each, next(batches), strict=True):
                rows = reader.rows(step)
                assert (part is None) == (len(rows) == 0)
                if part is not None:
                    expected = reader.read(step)
                    assert part.arrays.keys() == expected.arrays.keys()
                    assert all(np.array_equal(part.arrays[name], array) for name, array in expected.arrays.items())


def test_a_cache_that_a_step_would_read_twice_is_refused(caches: list[Cache]) -> None:
    with pytest.raises(
        UserError, match=f"{caches[1].path}: 12 rows, and its share of each step is 14.4; lower it or lower --training"
    ):
        readers(caches, batch=48)
