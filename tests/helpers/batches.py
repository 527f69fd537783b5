"""Micro-batches made by hand, for tests of the loss."""

import torch
from torch import Tensor

from student.data.batch import AveragedStates, Batch, TeacherTargets
from tests.helpers.layouts import layout


def no_targets() -> TeacherTargets:
    """For losses that do not look at the batch's targets."""
    return TeacherTargets(ids=None, values=None, log_mass=None, final_hidden=None, layout=layout(1))


def batch_of(
    labels: Tensor, loss_mask: Tensor, targets: TeacherTargets | None = None, hidden_mean: Tensor | None = None
) -> Batch:
    """A batch of labels and mask (B, T); its inputs, which no loss looks at, are zeros."""
    return Batch(
        inputs=torch.zeros_like(labels),
        document_start=None,
        labels=labels,
        loss_mask=loss_mask,
        targets=no_targets() if targets is None else targets,
        averaged=None if hidden_mean is None else AveragedStates.everywhere(hidden_mean),
    )
