"""Attention transfer: train mixers to give what softmax attention gives on the same input.

It needs tokens and the student's own weights alone. For a layer with mixer output h and attention output a, over the
valid positions of a row:

    error of a layer in a row = Σ ‖h - a‖² / Σ ‖a‖²
    loss = mean over layers and valid positions of the error of the position's row

So every row counts by its valid positions, and the loss does not depend on how a step is cut into micro-batches.
"""

import torch
from torch import Tensor


def transfer_sum(errors: Tensor, loss_mask: Tensor) -> Tensor:
    """The loss as a sum over valid positions, to be divided by their number; 0-dimensional and differentiable.

    Args:
        errors: what `TransplantStudent.attention_transfer` gives, (2, layers, B, T).
        loss_mask: which positions count, (B, T).

    """
    sums = (errors * loss_mask).sum(-1)  # (2, layers, B)
    in_rows = sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)
    return (in_rows * loss_mask.sum(-1)).sum(-1).mean()
