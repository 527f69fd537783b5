"""Rows of a cache as tensors, and a step's micro-batches."""

from pathlib import Path

import torch

from student.data.batch import Batch, StepBatch
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache


def test_a_step_batch_is_its_micro_batches(tmp_path: Path) -> None:
    cache = open_cache(
        make_synthetic_cache(
            tmp_path, rows=7, seq_len=4, vocab_size=32, top_k=4, hidden_size=8, rows_per_shard=7, hidden_stride=3
        )
    )
    rows = cache.rows(range(7))
    rows.loss_mask[2, 1:] = False
    rows.loss_mask[3, :2] = False
    batch = StepBatch.of(rows, 3, cache)
    assert batch.tokens == rows.loss_mask.sum()
    assert batch.sequences == 7
    parts = list(batch.on(torch.device("cpu")))
    assert [len(part.inputs) for part in parts] == [3, 3, 1]
    whole = Batch.of(rows, cache, torch.device("cpu"))
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert torch.equal(torch.cat([part.targets.values for part in parts]), whole.targets.values)
    rows.loss_mask[3, 3] = False
    assert StepBatch.of(rows, 3, cache).sequences == 6
