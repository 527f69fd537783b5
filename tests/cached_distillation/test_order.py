"""The sampler: the trainer's order, for any number of processes."""

import numpy as np
import pytest

from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler, require_same_order
from delta_common.errors import UserError
from student.data import order
from student.data.order import BatchReader, ShuffleSizes


def test_it_is_the_trainers_order(dataset: CacheDataset) -> None:
    reader = BatchReader(dataset.cache, seed=7, global_batch=6)
    sampler = EpochSampler(dataset, global_batch=6, seed=7)
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        steps = range(epoch * reader.batches_per_epoch, (epoch + 1) * reader.batches_per_epoch)
        assert list(sampler) == np.concatenate([reader.rows(step) for step in steps]).tolist()
    assert len(sampler) == len(list(sampler)) == 30


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_see_each_row_once(dataset: CacheDataset, world_size: int) -> None:
    each = [EpochSampler(dataset, global_batch=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    rows = [list(sampler) for sampler in each]
    assert sorted(row for part in rows for row in part) == list(range(32))
    alone = list(EpochSampler(dataset, global_batch=8))
    size = 8 // world_size
    for step in range(4):
        together = [row for part in rows for row in part[step * size : (step + 1) * size]]
        assert together == alone[step * 8 : (step + 1) * 8]


def test_it_goes_on_where_its_state_stands(dataset: CacheDataset) -> None:
    sampler, again = (EpochSampler(dataset, global_batch=4, seed=3) for _ in range(2))
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.done(5)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == whole[20:]
    again.done(again.steps_per_epoch)
    assert (again.epoch, again.step) == (3, 0)


@pytest.mark.parametrize(("changed", "message"), [("seed", "seed is 4"), ("global_batch", "global_batch is 8")])
def test_a_state_of_another_order_is_refused(dataset: CacheDataset, changed: str, message: str) -> None:
    settings = {"seed": 3, "global_batch": 4}
    state = EpochSampler(dataset, **{**settings, changed: {"seed": 4, "global_batch": 8}[changed]}).state_dict()
    with pytest.raises(UserError, match=f"the state's {message}, this run's is {settings[changed]}"):
        EpochSampler(dataset, **settings).load_state_dict(state)


def test_batches_that_do_not_fit_are_refused(dataset: CacheDataset) -> None:
    with pytest.raises(UserError, match="global_batch 5: give a multiple of the 2 processes"):
        EpochSampler(dataset, global_batch=5, rank=0, world_size=2)
    with pytest.raises(UserError, match="32 rows, fewer than global_batch 64; lower it"):
        EpochSampler(dataset, global_batch=64)


def test_a_state_of_before_pools_goes_on_in_its_order_and_a_refused_one_changes_nothing(
    dataset: CacheDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"global_batch": 4, "seed": 3}
    monkeypatch.setattr(order, "shuffle_sizes", lambda *_: ShuffleSizes(2, 2))
    before = EpochSampler(dataset, **settings)
    before.done(3)
    state, left = before.state_dict(), list(before)
    monkeypatch.setattr(order, "shuffle_sizes", lambda *_: ShuffleSizes(4, 2))
    ours = EpochSampler(dataset, **settings)
    fresh = list(ours)
    with pytest.raises(UserError, match="the state's seed is 4"):
        ours.load_state_dict({**state, "seed": 4})
    assert list(ours) == fresh
    del state["pool_shards"]  # type: ignore[misc]
    ours.load_state_dict(state)
    assert list(ours) == left != fresh[12:]
    with pytest.raises(UserError, match="the state's pool_shards is 2, this run's is 4"):
        require_same_order(state, EpochSampler(dataset, **settings).state_dict())
