"""Rows of a cache as tensors, and a step's micro-batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student.data.batch import Batch, StepBatch, StoredBatch
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
    batch = StepBatch.of([rows], 3, [cache])
    (counted,) = batch.counted
    assert counted.tokens == rows.loss_mask.sum()
    assert counted.sequences == rows.hidden_counted.any(axis=1).sum() >= 6
    parts = [part for micro_batch in batch.on(torch.device("cpu")) for part in micro_batch.parts]
    assert [len(part.inputs) for part in parts] == [3, 3, 1]
    whole = Batch.of(rows, cache, torch.device("cpu"))
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert torch.equal(torch.cat([part.targets.values for part in parts]), whole.targets.values)
    rows.loss_mask[0, rows.hidden_positions[0].clip(max=3)] = False
    assert StepBatch.of([rows], 3, [cache]).counted[0].sequences == counted.sequences - 1


@pytest.mark.parametrize(
    "kind",
    [
        {"hidden": "int8"},
        {"hidden": "int4"},
        {"hidden": "int8", "hidden_channels": 9, "hidden_stride": 2},
        {"hidden": "lossless", "hidden_channels": 9},
        {"mode": "exact", "exact_hidden": "int8"},
    ],
)
def test_widened_tensors_are_what_the_rows_decode_to(kind: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"rows": 3, "seq_len": 4, "vocab_size": 32, "top_k": 4, "hidden_size": 70, "rows_per_shard": 3}
    cache = open_cache(make_synthetic_cache(tmp_path, **sizes, **kind))
    rows = cache.rows(range(3))
    stored = StoredBatch.of(rows, cache)
    assert all(tensor.element_size() == rows.arrays[name].itemsize for name, tensor in stored.tensors.items())
    batch = stored.widened()
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64
    assert np.array_equal(batch.inputs, rows.tokens[:, :-1])
    assert np.array_equal(batch.labels, rows.tokens[:, 1:])
    for name in ("ids", "values", "log_mass", "final_hidden"):
        tensor, array = getattr(batch.targets, name), getattr(rows, name)
        assert (tensor is None) == (array is None), name
        assert tensor is None or np.array_equal(tensor, array), name
    assert batch.averaged is not None
    assert np.array_equal(batch.averaged.values, rows.hidden_mean)
    assert np.array_equal(batch.averaged.positions, rows.hidden_positions)
    channels = batch.averaged.channels
    assert (channels is None) == (rows.hidden_channels is None)
    assert channels is None or np.array_equal(channels, rows.hidden_channels)
