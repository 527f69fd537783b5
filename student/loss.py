"""The student's loss: cross-entropy, sparse distillation and the Frobenius term, as sums over valid positions.

Sums, because valid positions are spread over micro-batches and processes: the caller divides once, by global counts.
The frozen LM head is applied to chunks of valid positions, recomputed in the backward pass, so that logits over
[all positions, vocabulary] never exist. Sums are in float32, or in float64 for float64 hidden states.

The teacher is known by its largest logits and by the mass of all the others, which here is one bucket:
`KL = Σ_kept p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest)`, exact where everything is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from student.frozen_weights import FrozenHead
from student.schedule import Coefficients
from teacher_cache.format import LOG_MASS_FLOOR

FrobeniusNorm = Literal["sequence", "batch"]

CHUNK_LOGITS = 2**25
"""Logits a chunk holds unless told otherwise: 128 MiB in float32, 220 positions of 151,936 tokens.

Intermediate results and gradients take about ten times as much at the peak.
"""

NO_MASS = LOG_MASS_FLOOR + 10
"""A rest of log-probability below this counts as none: the floor, with room for the interpolation's rounding."""

LOWEST = -1e30
"""Stands for a logit of -inf with finite gradients."""


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's distribution of each next token, as the cache holds it."""

    ids: Tensor
    """(B, T, K) int64, kept entries, largest logit first."""
    values: Tensor
    """(B, T, K) raw logits; -inf marks an unused place."""
    log_mass: Tensor
    """(B, T, J) log-mass of the entries not kept, relative to the largest logit, at J node temperatures."""


@dataclass(frozen=True)
class LossSums:
    """Sums of one micro-batch, 0-dimensional and differentiable, with the counts they are over."""

    cross_entropy: Tensor
    kl: Tensor
    """KL(p_T ‖ q_T), without the factor T²."""
    frobenius: Tensor
    """Sum over sequences; 0 without averaged hidden states."""
    tokens: int
    """Valid positions."""
    sequences: int
    """Sequences with a valid position."""


def total_loss(sums: LossSums, coefficients: Coefficients, *, tokens: float, sequences: float) -> Tensor:
    """Eq. 36 and 38: `(1 - α - β) CE + α T² KL + β F`, divided once by the counts of the global batch."""
    alpha, beta = coefficients.alpha, coefficients.beta
    per_token = (1 - alpha - beta) * sums.cross_entropy + alpha * coefficients.temperature**2 * sums.kl
    return per_token / tokens + beta * sums.frobenius / sequences


def distillation_loss_sums(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T) int64
    loss_mask: Tensor,  # (B, T) bool
    targets: TeacherTargets,
    *,
    temperature: float,
    interpolation_weights: Tensor,  # (J,)
    hidden_mean: Tensor | None = None,  # (B, T, d)
    frobenius_norm: FrobeniusNorm = "sequence",
    chunk_tokens: int | None = None,
) -> LossSums:
    """Sums over valid positions of CE, KL at `temperature`, and F (Eq. 37) where `hidden_mean` is given.

    `interpolation_weights` are those of `temperature`: `A(1/T) = log_mass @ interpolation_weights`.
    """
    cross_entropy = kl = _zero(hidden_states)
    chunks = list(_chunks(hidden_states, head, labels, loss_mask, targets, interpolation_weights, chunk_tokens))
    for number, chunk in enumerate(chunks, start=1):
        ce_sum, kl_sum = _chunk_sums(chunk, head, temperature, keep=number == len(chunks))
        cross_entropy, kl = cross_entropy + ce_sum, kl + kl_sum
    return LossSums(
        cross_entropy=cross_entropy,
        kl=kl,
        frobenius=_frobenius_sum(hidden_states, hidden_mean, loss_mask, frobenius_norm),
        tokens=int(loss_mask.sum()),
        sequences=_sequences(loss_mask),
    )


def dense_distillation_loss(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T)
    loss_mask: Tensor,  # (B, T)
    teacher_logits: Tensor,  # (B, T, V) or (B, T, V_padded)
    *,
    temperature: float,
    hidden_mean: Tensor | None = None,  # (B, T, d)
    frobenius_norm: FrobeniusNorm = "sequence",
) -> LossSums:
    """The same sums from the teacher's full logits, without chunks: online distillation, and the naive twin."""
    logits = functional.linear(hidden_states[loss_mask], head.weight, head.bias)
    logits = logits.to(_accumulation_dtype(hidden_states))
    teacher = teacher_logits[loss_mask][:, : logits.shape[1]].to(logits.dtype)
    log_p = functional.log_softmax(teacher / temperature, dim=-1)
    log_q = functional.log_softmax(logits / temperature, dim=-1)
    return LossSums(
        cross_entropy=functional.cross_entropy(logits, labels[loss_mask], reduction="sum"),
        kl=_divergence(log_p, log_q).sum(),
        frobenius=_frobenius_sum(hidden_states, hidden_mean, loss_mask, frobenius_norm),
        tokens=int(loss_mask.sum()),
        sequences=_sequences(loss_mask),
    )


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over valid positions at T = 1, without gradients; they add up over batches."""

    cross_entropy: float
    kl: float
    agreement: int
    """Positions where student and teacher have the same first choice."""
    tokens: int

    def __add__(self, other: "EvaluationSums") -> "EvaluationSums":
        return EvaluationSums(
            self.cross_entropy + other.cross_entropy,
            self.kl + other.kl,
            self.agreement + other.agreement,
            self.tokens + other.tokens,
        )


@torch.no_grad()
def evaluation_sums(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T) int64
    loss_mask: Tensor,  # (B, T) bool
    targets: TeacherTargets,
    *,
    interpolation_weights: Tensor,  # (J,), of T = 1
    chunk_tokens: int | None = None,
) -> EvaluationSums:
    """Held-out cross-entropy, KL to the teacher, and how often both have the same first choice."""
    sums = EvaluationSums(0.0, 0.0, 0, 0)
    for chunk in _chunks(hidden_states, head, labels, loss_mask, targets, interpolation_weights, chunk_tokens):
        logits = _project(chunk.hidden, head)
        sums += EvaluationSums(
            float(functional.cross_entropy(logits, chunk.labels, reduction="sum")),
            float(bucketed_kl(logits, chunk.ids, chunk.values, chunk.log_rest, 1.0).sum()),
            int((logits.argmax(dim=-1) == chunk.ids[:, 0]).sum()),
            len(chunk.labels),
        )
    return sums


def bucketed_kl(
    student_logits: Tensor,  # (n, V)
    ids: Tensor,  # (n, K)
    values: Tensor,  # (n, K)
    log_rest: Tensor,  # (n,)
    temperature: float,
) -> Tensor:
    """KL(p_T ‖ q_T) at each position, (n,), over the kept entries and one bucket for all others.

    `log_rest` is the teacher's log-mass A(1/T) of the others. The student's mass of the others is summed from its
    own logits, not taken as 1 - Σ q_kept, which cancels where that sum is near 1.
    """
    log_p, log_p_rest = _teacher_log_probabilities(values, log_rest, temperature)
    used = values > -torch.inf
    ids = torch.where(used, ids, ids[:, :1])
    scaled = student_logits / temperature
    kept = scaled.gather(1, ids).masked_fill(~used, LOWEST)
    others = scaled.scatter(1, ids, LOWEST).logsumexp(dim=-1)
    log_z = torch.logaddexp(kept.logsumexp(dim=-1), others)
    bucket = torch.where(
        log_p_rest > NO_MASS, log_p_rest.exp() * (log_p_rest - (others - log_z)), torch.zeros_like(log_z)
    )
    return _divergence(log_p, kept - log_z[:, None]) + bucket


def _teacher_log_probabilities(values: Tensor, log_rest: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p of the kept entries (n, K) and of the bucket (n,)."""
    scaled = (values - values[:, :1]) / temperature
    log_z = torch.logaddexp(scaled.logsumexp(dim=-1), log_rest)
    return scaled - log_z[:, None], log_rest - log_z


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) over the last axis; an entry of p = 0 adds nothing."""
    finite = log_p.masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * (finite - log_q)).sum(dim=-1)


@dataclass(frozen=True)
class _Chunk:
    """n valid positions."""

    hidden: Tensor  # (n, d)
    labels: Tensor  # (n,)
    ids: Tensor  # (n, K)
    values: Tensor  # (n, K)
    log_rest: Tensor  # (n,)


def _chunks(
    hidden_states: Tensor,
    head: FrozenHead,
    labels: Tensor,
    loss_mask: Tensor,
    targets: TeacherTargets,
    interpolation_weights: Tensor,
    chunk_tokens: int | None,
) -> Iterator[_Chunk]:
    """The valid positions in order, `chunk_tokens` at a time."""
    dtype = _accumulation_dtype(hidden_states)
    size = chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight))
    log_rest = targets.log_mass[loss_mask].to(dtype) @ interpolation_weights.to(dtype)
    parts = (
        hidden_states[loss_mask],
        labels[loss_mask],
        targets.ids[loss_mask],
        targets.values[loss_mask].to(dtype),
        log_rest,
    )
    for tensors in zip(*(torch.split(part, size) for part in parts), strict=True):
        if len(tensors[0]):
            yield _Chunk(*tensors)


def _chunk_sums(chunk: _Chunk, head: FrozenHead, temperature: float, *, keep: bool) -> tuple[Tensor, Tensor]:
    """Sums of CE and KL; logits are recomputed in the backward pass unless `keep`.

    The backward pass starts with the last chunk, so keeping that one's logits costs no memory at the peak.
    """

    def sums(hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits = _project(hidden, head)
        cross_entropy = functional.cross_entropy(logits, chunk.labels, reduction="sum")
        kl = bucketed_kl(logits, chunk.ids, chunk.values, chunk.log_rest, temperature)
        return cross_entropy, kl.sum()

    if keep:
        return sums(chunk.hidden)
    found: tuple[Tensor, Tensor] = checkpoint(sums, chunk.hidden, use_reentrant=False, preserve_rng_state=False)
    return found


def _project(hidden: Tensor, head: FrozenHead) -> Tensor:
    """Logits over real tokens, (n, V), in the dtype sums are taken in."""
    logits: Tensor = functional.linear(hidden, head.weight, head.bias)
    return logits.to(_accumulation_dtype(hidden))


def _accumulation_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _zero(hidden: Tensor) -> Tensor:
    """A 0 to add to that has a gradient, so that a micro-batch without valid positions goes backward too."""
    return hidden[:0].sum(dtype=_accumulation_dtype(hidden))


def _frobenius_sum(hidden_states: Tensor, hidden_mean: Tensor | None, loss_mask: Tensor, norm: FrobeniusNorm) -> Tensor:
    """Eq. 37 as a sum over sequences: `Σ_i ‖H̄_i - h_i‖_F / sqrt(numel_i)` over valid positions.

    With norm "batch" every sequence of the micro-batch counts with the one norm taken over all of them.
    """
    if hidden_mean is None:
        return _zero(hidden_states)
    dtype = _accumulation_dtype(hidden_states)
    difference = (hidden_mean.to(dtype) - hidden_states.to(dtype)) * loss_mask[..., None]
    width = hidden_states.shape[-1]
    if norm == "batch":
        numel = (loss_mask.sum() * width).clamp(min=1)
        whole: Tensor = torch.linalg.vector_norm(difference) / numel.to(dtype).sqrt()
        return whole * _sequences(loss_mask)
    numel = (loss_mask.sum(dim=1) * width).clamp(min=1)
    norms: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2)) / numel.to(dtype).sqrt()
    return norms.sum()


def _sequences(loss_mask: Tensor) -> int:
    return int(loss_mask.any(dim=1).sum())
