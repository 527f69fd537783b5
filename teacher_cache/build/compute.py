"""Rows → teacher → targets → arrays: computes a shard batch by batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.device import OnTheirWay, to_device, to_host
from teacher_cache.teacher.model import Teacher


def computed_batches(
    teacher: Teacher, arrays: ShardArrays, batch_size: int, statistics: ShardStatistics
) -> Iterator[slice]:
    """Fill the shard's arrays, yielding each batch when it is in place; meanwhile a GPU computes the next."""
    before: tuple[slice, OnTheirWay] | None = None
    for batch in batches(len(arrays.rows), batch_size):
        stored = start_batch(teacher, arrays, batch, statistics)
        if before is not None:
            arrays.put(before[0], before[1].arrived())
            yield before[0]
        before = batch, stored
    if before is not None:
        statistics.settle()
        arrays.put(before[0], before[1].arrived())
        yield before[0]


def compute_batch(teacher: Teacher, arrays: ShardArrays, batch: slice, statistics: ShardStatistics) -> None:
    """Run the teacher over the rows of `batch` and put the targets of all counted positions into the arrays."""
    arrays.put(batch, start_batch(teacher, arrays, batch, statistics).arrived())


@torch.inference_mode()
def start_batch(teacher: Teacher, arrays: ShardArrays, batch: slice, statistics: ShardStatistics) -> OnTheirWay:
    """`compute_batch` without the last step: the arrays of the batch, on their way to the CPU.

    Nothing here waits for a GPU, so it goes from one batch to the next without a pause.
    """
    manifest, device = arrays.manifest, teacher.device
    tokens = torch.from_numpy(arrays.tokens[batch].astype(np.int64))
    starts = torch.from_numpy(arrays.document_start[batch]) if manifest.rows.context == "document" else None
    counted = torch.from_numpy(arrays.loss_mask[batch]).flatten().nonzero().squeeze(1)
    states = teacher.states(tokens[:, :-1], mean=manifest.hidden.mean != "none", document_start=starts)
    stored: dict[str, Tensor] = {}
    if len(counted):
        labels = tokens[:, 1:].flatten()[counted]
        offsets = arrays.sampling_offsets(batch).flatten()[counted]
        kept = teacher.targets(states.final, counted, labels, offsets, manifest.targets)
        statistics.add(kept, to_device(labels, device))
        if manifest.targets.mode == "sparse":
            stored |= arrays.stored_targets(batch, to_device(counted, device), kept)
    if states.mean is not None:
        stored |= arrays.stored_hidden_mean(batch, states.mean)
    if manifest.targets.mode == "exact":
        stored |= arrays.stored_final(batch, states.final)
    return to_host(stored)


def batches(rows: int, batch_size: int) -> Iterator[slice]:
    """Slices of `batch_size` rows, in order; the last may be shorter."""
    for start in range(0, rows, batch_size):
        yield slice(start, min(start + batch_size, rows))
