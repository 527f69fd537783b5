"""A batch on its device: what a step and an evaluation put into the student and its loss."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from student.loss import TeacherTargets
from teacher_cache.reader import CachedRows


@dataclass(frozen=True)
class Batch:
    """inputs, labels (B, T) int64; loss_mask (B, T) bool; targets; hidden_mean (B, T, d) float32 or None."""

    inputs: Tensor
    labels: Tensor
    loss_mask: Tensor
    targets: TeacherTargets
    hidden_mean: Tensor | None

    @classmethod
    def of(cls, rows: CachedRows, device: torch.device) -> "Batch":
        """Cached rows as tensors; position t's label is tokens[t + 1]."""
        tokens = torch.from_numpy(rows.tokens.astype(np.int64)).to(device)
        targets = TeacherTargets(
            ids=torch.from_numpy(rows.ids.astype(np.int64)).to(device),
            values=torch.from_numpy(rows.values).to(device),
            log_mass=torch.from_numpy(rows.log_mass).to(device),
        )
        hidden = None if rows.hidden_mean is None else torch.from_numpy(rows.hidden_mean).to(device)
        return cls(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(rows.loss_mask).to(device), targets, hidden)


def micro_batches(rows: CachedRows, size: int, device: torch.device) -> Iterator[Batch]:
    """Rows cut into batches of `size`, moved to the device one at a time."""
    for first in range(0, len(rows.tokens), size):
        yield Batch.of(rows.select(slice(first, first + size)), device)


def loss_counts(rows: CachedRows) -> tuple[int, int]:
    """Valid positions, and rows that have one: what sums of the loss are divided by."""
    return int(rows.loss_mask.sum()), int(rows.loss_mask.any(axis=1).sum())
