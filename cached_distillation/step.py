"""What the sums of an optimizer step are divided by: a mean of means over micro-batches would be another loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from cached_distillation.batch import CachedBatch
from student.data.batch import GlobalCounts


def step_counts(batches: Sequence[CachedBatch], device: torch.device | str | None = None) -> GlobalCounts:
    """Positions and rows that count in the micro-batches of a step, over all processes; at least 1, to divide by.

    Every process must call it. `device` is where torch.distributed's backend adds up, such as "cuda" for NCCL; that of
    the batches unless given.
    """
    ours = torch.stack([counted(batch) for batch in batches]).sum(0)
    if distributed.is_available() and distributed.is_initialized():
        ours = ours.to(device or ours.device)
        distributed.all_reduce(ours)
    return GlobalCounts(*ours.clamp(min=1).tolist())


def own_counts(batch: CachedBatch) -> GlobalCounts:
    """A batch's own counts, at least 1."""
    return GlobalCounts(*counted(batch).clamp(min=1).tolist())


def counted(batch: CachedBatch) -> Tensor:
    """Valid positions, and rows with a valid position that has hidden states; (2,) float64."""
    mask, averaged = batch.loss_mask, batch.widened.averaged
    with_states = mask if averaged is None else averaged.counted(mask)
    return torch.stack([mask.sum(), with_states.any(dim=1).sum()]).double()
