"""Attention transfer: train mixers to give what softmax attention gives on the same input.

It needs tokens and the student's own weights alone. For a layer with mixer output h and attention output a, over the
valid positions of a batch:

    loss = mean over layers of  Σ ‖h - a‖² / Σ ‖a‖²
"""

import torch
from torch import Tensor


def transfer_loss(errors: Tensor, loss_mask: Tensor) -> Tensor:
    """The loss, 0-dimensional and differentiable.

    Args:
        errors: what `TransplantStudent.attention_transfer` gives, (2, layers, B, T).
        loss_mask: which positions count, (B, T); at least one.

    """
    sums = (errors * loss_mask).sum((-1, -2))
    return (sums[0] / sums[1].clamp(min=torch.finfo(sums.dtype).tiny)).mean()
