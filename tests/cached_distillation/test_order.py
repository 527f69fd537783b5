"""The sampler: the trainer's order, for any number of processes."""

import numpy as np
import pytest

from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler
from delta_common.errors import UserError
from student.data.order import BatchReader


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
