"""A batch on its device: what a step and an evaluation put into the student and its loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.divergence import TeacherTargets
from teacher_cache.decode import CachedRows
from teacher_cache.format import TargetLayout


@dataclass(frozen=True)
class Batch:
    """inputs, labels (B, T) int64; loss_mask (B, T) bool; targets; hidden_mean (B, ceil(T/stride), d) or None."""

    inputs: Tensor
    labels: Tensor
    loss_mask: Tensor
    targets: TeacherTargets
    hidden_mean: Tensor | None

    @classmethod
    def of(cls, rows: CachedRows, layout: TargetLayout, device: torch.device) -> "Batch":
        """Rows of a cache of this layout as tensors; position t's label is tokens[t + 1]."""

        def moved(array: NDArray[Any] | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array).to(device)

        tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(device)
        targets = TeacherTargets(
            ids=None if rows.ids is None else moved(rows.ids.astype(np.int64)),
            values=moved(rows.values),
            log_mass=moved(rows.log_mass),
            final_hidden=moved(rows.final_hidden),
            layout=layout,
        )
        loss_mask = torch.from_numpy(rows.loss_mask).to(device)
        return cls(tokens[:, :-1], tokens[:, 1:], loss_mask, targets, moved(rows.hidden_mean))


def micro_batches(rows: CachedRows, size: int, layout: TargetLayout, device: torch.device) -> Iterator[Batch]:
    """Rows cut into batches of `size`, moved to the device one at a time."""
    for first in range(0, len(rows.tokens), size):
        yield Batch.of(rows.select(slice(first, first + size)), layout, device)


def loss_counts(rows: CachedRows, hidden_stride: int) -> tuple[int, int]:
    """What sums of the loss are divided by: valid positions, and rows that have one with averaged hidden states."""
    return int(rows.loss_mask.sum()), int(rows.loss_mask[:, ::hidden_stride].any(axis=1).sum())
