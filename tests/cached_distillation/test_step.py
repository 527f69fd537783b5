"""What a step's sums are divided by."""

import torch

from cached_distillation.batch import CachedBatch, collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.step import own_counts, step_counts
from student.data.batch import StoredBatch


def test_counts_are_of_all_micro_batches(dataset: CacheDataset) -> None:
    batches = [collate([dataset[0], dataset[1]]), collate([dataset[2]])]
    counts = step_counts(batches)
    assert counts.tokens == sum(int(batch.loss_mask.sum()) for batch in batches)
    assert counts.sequences == 3
    assert own_counts(batches[1]).sequences == 1


def test_they_are_something_to_divide_by(dataset: CacheDataset) -> None:
    stored = collate([dataset[0]]).stored
    nothing = {**stored.tensors, "loss_mask": torch.zeros_like(stored.tensors["loss_mask"])}
    batch = CachedBatch(StoredBatch(nothing, stored.manifest, stored.layout))
    assert step_counts([batch]) == own_counts(batch)
    assert own_counts(batch).tokens == 1
