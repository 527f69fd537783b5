"""The student's loss: cross-entropy, the teacher's term and the Frobenius term, as sums over valid positions.

Sums, because valid positions are spread over micro-batches and processes: the caller divides once, by global counts.
The frozen LM head is applied to chunks of valid positions, recomputed in the backward pass, so that logits over
[all positions, vocabulary] never exist. Sums are in float32, or in float64 for float64 hidden states.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from student.data.batch import TeacherTargets
from student.loss.divergence import Divergence, TermWeights, divergence_at
from student.loss.fused import fused_loss, valid_positions
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead

FrobeniusNorm = Literal["sequence", "batch"]


@dataclass(frozen=True)
class FrobeniusTerm:
    """How Eq. 37 is taken: the norm of what, over which positions."""

    norm: FrobeniusNorm = "sequence"
    """One norm a sequence, or one over the micro-batch that counts for every sequence."""
    stride: int = 1
    """The teacher's averaged states are known at every stride-th position; those are compared."""
    channel_rms: Tensor | None = None
    """(d,) what each channel's difference is divided by; None leaves it as it is."""


@dataclass(frozen=True)
class LossSums:
    """Sums of one micro-batch, 0-dimensional and differentiable."""

    cross_entropy: Tensor
    kl: Tensor
    """KL(p_T ‖ q_T), without the factor T²."""
    frobenius: Tensor
    """Sum over sequences; 0 without averaged hidden states."""


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
    labels: Tensor,  # (B, T) int64
    loss_mask: Tensor,  # (B, T) bool
    targets: TeacherTargets,
    coefficients: Coefficients,
    *,
    tokens: float,
    sequences: float,
    hidden_mean: Tensor | None = None,  # (B, ceil(T / stride), d)
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> DistillationLoss:
    """What `total_loss` makes of `distillation_loss_sums`, with its gradient in one pass over the logits.

    `tokens` and `sequences` are the counts of the global batch. Raises `UserError` when the targets are not known at
    this temperature.
    """
    positions, dtype = valid_positions(loss_mask), _accumulation_dtype(hidden_states)
    return loss_against(
        divergence_at(coefficients.temperature, targets, positions, head, dtype),
        positions,
        hidden_states,
        head,
        labels,
        loss_mask,
        coefficients,
        tokens=tokens,
        sequences=sequences,
        hidden_mean=hidden_mean,
        frobenius=frobenius,
        chunk_tokens=chunk_tokens,
    )


def loss_against(
    divergence: Divergence | None,  # at the valid positions, in order
    positions: Tensor,  # (n,) int64, `valid_positions` of the loss_mask
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T) int64
    loss_mask: Tensor,  # (B, T) bool
    coefficients: Coefficients,
    *,
    tokens: float,
    sequences: float,
    hidden_mean: Tensor | None = None,  # (B, ceil(T / stride), d)
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> DistillationLoss:
    """`distillation_loss` against any account of the teacher at the coefficients' temperature; None has KL 0."""
    alpha, beta, temperature = coefficients.alpha, coefficients.beta, coefficients.temperature
    term = frobenius or FrobeniusTerm()
    weights = TermWeights((1 - alpha - beta) / tokens, alpha * temperature**2 / tokens)
    found = fused_loss(hidden_states, head, labels, positions, divergence, weights, chunk_tokens=chunk_tokens)
    norms = _frobenius_sum(hidden_states, hidden_mean, loss_mask, term)
    sums = LossSums(
        cross_entropy=found.cross_entropy,
        kl=found.kl,
        frobenius=norms.detach(),
    )
    return DistillationLoss(found.value + beta * norms / sequences, sums)


def _accumulation_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _zero(hidden: Tensor) -> Tensor:
    """A 0 to add to that has a gradient, so that a micro-batch without valid positions goes backward too."""
    return hidden[:0].sum(dtype=_accumulation_dtype(hidden))


def _frobenius_sum(hidden_states: Tensor, hidden_mean: Tensor | None, loss_mask: Tensor, term: FrobeniusTerm) -> Tensor:
    """Eq. 37 as a sum over sequences: `Σ_i ‖H̄_i - h_i‖_F / sqrt(numel_i)` over valid positions that H̄ has.

    With norm "batch" every sequence of the micro-batch counts with the one norm taken over all of them.
    """
    if hidden_mean is None:
        return _zero(hidden_states)
    dtype = _accumulation_dtype(hidden_states)
    mask = loss_mask[:, :: term.stride]
    difference = hidden_mean.to(dtype) - hidden_states[:, :: term.stride].to(dtype)
    if term.channel_rms is not None:
        difference = difference / term.channel_rms.to(dtype)
    difference = difference * mask[..., None]
    width = hidden_states.shape[-1]
    if term.norm == "batch":
        numel = (mask.sum() * width).clamp(min=1)
        whole: Tensor = torch.linalg.vector_norm(difference) / numel.to(dtype).sqrt()
        return whole * mask.any(dim=1).sum()
    numel = (mask.sum(dim=1) * width).clamp(min=1)
    norms: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2)) / numel.to(dtype).sqrt()
    return norms.sum()
