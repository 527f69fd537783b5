"""The loader: where training stands, whatever was read ahead."""

from itertools import islice

import pytest
import torch

from cached_distillation.dataset import CacheDataset
from cached_distillation.loader import CacheLoader
from cached_distillation.order import EpochSampler
from delta_common.errors import UserError


def rows_of(loader: CacheLoader) -> list[list[int]]:
    return [batch.input_ids.flatten().tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_behind_the_last_whole_step(dataset: CacheDataset, workers: int) -> None:
    def loader() -> CacheLoader:
        return CacheLoader(dataset, batch_size=2, accumulation=2, seed=5, num_workers=workers)

    whole, broken, resumed = loader(), loader(), loader()
    expected = rows_of(whole) + rows_of(whole)
    assert whole.epoch == 2
    batches = iter(broken)
    seen = [batch.input_ids.flatten().tolist() for batch in islice(batches, 7)]
    assert seen == expected[:7]
    resumed.load_state_dict(broken.state_dict())
    assert rows_of(resumed) + rows_of(resumed) == expected[6:]  # the seventh is of a step that was not taken


def test_an_epoch_ends_with_its_last_step(dataset: CacheDataset) -> None:
    loader = CacheLoader(dataset, batch_size=4, accumulation=2)
    steps = list(loader.steps())
    assert [len(step) for step in steps] == [2] * loader.steps_per_epoch == [2] * 4
    assert len(loader) == 8
    assert loader.state_dict()["epoch"] == 1
    first = torch.cat([batch.input_ids for batch in next(loader.steps())])
    order = EpochSampler(dataset, global_batch=8)
    order.set_epoch(1)
    assert torch.equal(first, torch.stack([dataset[row]["input_ids"] for row in islice(order, 8)]))


def test_sizes_below_one_are_refused(dataset: CacheDataset) -> None:
    for sizes in ({"batch_size": 0}, {"batch_size": 1, "accumulation": 0}):
        with pytest.raises(UserError, match="0: give at least 1"):
            CacheLoader(dataset, **sizes)
