"""The student's loss (Eq. 38): cross-entropy, the teacher's term and the Frobenius term.

Each is a sum over valid positions or sequences, divided once by the counts of the global batch: valid positions are
spread unevenly over micro-batches and processes, so a mean of means would be another loss. The frozen LM head is
applied to chunks of valid positions, so logits over [all positions, vocabulary] never exist. Sums are in float32, or
in float64 for float64 hidden states.
"""

from dataclasses import dataclass

from torch import Tensor

from student.data.batch import Batch, GlobalCounts
from student.loss.divergence import Divergence, TermWeights, divergence_at
from student.loss.frobenius import FrobeniusTerm, accumulation_dtype, frobenius_sum
from student.loss.fused import fused_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead


@dataclass(frozen=True)
class LossSums:
    """Sums of one micro-batch, 0-dimensional."""

    cross_entropy: Tensor
    """Over valid positions, in nats."""
    kl: Tensor
    """KL(p_T ‖ q_T) over valid positions, in nats, without the factor T²."""
    frobenius: Tensor
    """Over sequences; 0 where the term is off."""


@dataclass(frozen=True)
class DistillationLoss:
    """A micro-batch's part of Eq. 38, and the sums it is made of."""

    total: Tensor
    """0-dimensional, differentiable, divided by the counts of the global batch."""
    sums: LossSums
    """Detached."""


def distillation_loss(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    batch: Batch,
    coefficients: Coefficients,
    counts: GlobalCounts,
    *,
    frobenius: FrobeniusTerm | None = None,
    teacher_head: FrozenHead | None = None,
    chunk_tokens: int | None = None,
) -> DistillationLoss:
    """A micro-batch's part of `(1 - α - β) CE + α T² KL + β F`, with its gradient in one pass over the logits.

    `frobenius` None leaves F out; `teacher_head` is the teacher's where `head` is another. The naive twin is
    `student.loss.naive`. Raises `UserError` when the batch's targets are not known at this temperature.
    """
    dtype = accumulation_dtype(hidden_states)
    divergence = divergence_at(
        coefficients.temperature, batch.targets, batch.valid_positions, teacher_head or head, dtype
    )
    return loss_against(
        divergence, hidden_states, head, batch, coefficients, counts, frobenius=frobenius, chunk_tokens=chunk_tokens
    )


def loss_against(
    divergence: Divergence | None,
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    batch: Batch,
    coefficients: Coefficients,
    counts: GlobalCounts,
    *,
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> DistillationLoss:
    """`distillation_loss` against any divergence at the batch's valid positions, in order; None has KL 0.

    The divergence's temperature must be the coefficients'. The batch's own targets are not looked at.
    """
    alpha, beta, temperature = coefficients.alpha, coefficients.beta, coefficients.temperature
    weights = TermWeights((1 - alpha - beta) / counts.tokens, alpha * temperature**2 / counts.tokens)
    found = fused_loss(
        hidden_states, head, batch.labels, batch.valid_positions, divergence, weights, chunk_tokens=chunk_tokens
    )
    norms = frobenius_sum(hidden_states, batch.averaged, batch.loss_mask, frobenius)
    sums = LossSums(cross_entropy=found.cross_entropy, kl=found.kl, frobenius=norms.detach())
    return DistillationLoss(found.value + beta * norms / counts.sequences, sums)
