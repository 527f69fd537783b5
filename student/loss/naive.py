"""The loss written plainly: the naive twin of `fused`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from student.data.batch import TeacherTargets
from student.loss.distillation import FrobeniusTerm, LossSums, _accumulation_dtype, _frobenius_sum, _zero
from student.loss.divergence import Divergence, dense_kl, divergence_at
from student.loss.fused import valid_positions
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead

CHUNK_LOGITS = 2**25
"""Logits a chunk holds unless told otherwise: 128 MiB in float32, 220 positions of 151,936 tokens.

Intermediate results and gradients take about ten times as much at the peak.
"""


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
    hidden_mean: Tensor | None = None,  # (B, ceil(T / stride), d)
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> LossSums:
    """Sums over valid positions of CE, KL at `temperature`, and F (Eq. 37) where `hidden_mean` is given.

    Raises `UserError` when the targets are not known at this temperature.
    """
    cross_entropy = kl = _zero(hidden_states)
    divergence = divergence_at(
        temperature, targets, valid_positions(loss_mask), head, _accumulation_dtype(hidden_states)
    )
    chunks = list(_chunks(hidden_states[loss_mask], head, labels[loss_mask], divergence, chunk_tokens))
    for number, chunk in enumerate(chunks, start=1):
        ce_sum, kl_sum = _chunk_sums(chunk, head, keep=number == len(chunks))
        cross_entropy, kl = cross_entropy + ce_sum, kl + kl_sum
    term = frobenius or FrobeniusTerm()
    return LossSums(
        cross_entropy=cross_entropy,
        kl=kl,
        frobenius=_frobenius_sum(hidden_states, hidden_mean, loss_mask, term),
    )


def dense_distillation_loss(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T)
    loss_mask: Tensor,  # (B, T)
    teacher_logits: Tensor,  # (B, T, V) or (B, T, V_padded)
    *,
    temperature: float,
    hidden_mean: Tensor | None = None,  # (B, ceil(T / stride), d)
    frobenius: FrobeniusTerm | None = None,
) -> LossSums:
    """The same sums from the teacher's full logits, without chunks: online distillation, and the naive twin."""
    logits = head.logits(hidden_states[loss_mask])
    teacher = teacher_logits[loss_mask][:, : logits.shape[1]]
    term = frobenius or FrobeniusTerm()
    return LossSums(
        cross_entropy=functional.cross_entropy(logits, labels[loss_mask], reduction="sum"),
        kl=dense_kl(teacher, logits, temperature).sum(),
        frobenius=_frobenius_sum(hidden_states, hidden_mean, loss_mask, term),
    )


@dataclass(frozen=True)
class _Chunk:
    """n valid positions."""

    hidden: Tensor  # (n, d)
    labels: Tensor  # (n,)
    divergence: Divergence


def _chunks(
    hidden: Tensor,  # (n, d)
    head: FrozenHead,
    labels: Tensor,  # (n,)
    divergence: Divergence,
    chunk_tokens: int | None,
) -> Iterator[_Chunk]:
    """The valid positions in order, `chunk_tokens` at a time."""
    size = chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight))
    if len(hidden):
        for parts in zip(torch.split(hidden, size), torch.split(labels, size), divergence.split(size), strict=True):
            yield _Chunk(*parts)


def _chunk_sums(chunk: _Chunk, head: FrozenHead, *, keep: bool) -> tuple[Tensor, Tensor]:
    """Sums of CE and KL; logits are recomputed in the backward pass unless `keep`.

    The backward pass starts with the last chunk, so keeping that one's logits costs no memory at the peak.
    """

    def sums(hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits = head.logits(hidden)
        cross_entropy = functional.cross_entropy(logits, chunk.labels, reduction="sum")
        return cross_entropy, chunk.divergence.kl(logits).sum()

    if keep:
        return sums(chunk.hidden)
    found: tuple[Tensor, Tensor] = checkpoint(sums, chunk.hidden, use_reentrant=False, preserve_rng_state=False)
    return found
