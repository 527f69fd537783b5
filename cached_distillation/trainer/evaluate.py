"""Held-out sums of a student, row by row, so that what is measured twice can be told."""

import torch
from torch import Tensor, nn

from cached_distillation.batch import CachedBatch
from cached_distillation.causal_lm import at_head
from cached_distillation.loss import distillation_loss
from student.loss.distillation import DistillationLoss
from student.model.frozen import FrozenHead


def row_sums(model: nn.Module, batch: CachedBatch, teacher_head: FrozenHead | None = None) -> Tensor:
    """Sums over each row of cross-entropy and KL at T = 1, in nats, and its number of positions; (B, 3) float64."""
    found: list[Tensor] = []

    def ask(hidden_states: Tensor, lm_head: nn.Module) -> DistillationLoss:
        for number in range(len(batch)):
            row = batch.row(number)
            part = distillation_loss(
                hidden_states[number : number + 1], lm_head, row, alpha=0.5, temperature=1.0, teacher_head=teacher_head
            )
            tokens = row.loss_mask.sum().to(part.total)
            found.append(torch.stack([part.sums.cross_entropy, part.sums.kl, tokens]).double())
        return part

    with torch.no_grad():
        at_head(model, batch, ask)
    return torch.stack(found)
