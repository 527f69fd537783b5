"""The loss written plainly, with autograd: the naive twin of `student.loss.distillation`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from student.data.batch import Batch, GlobalCounts
from student.loss.distillation import LossSums
from student.loss.divergence import Divergence, dense_kl, divergence_at
from student.loss.frobenius import FrobeniusTerm, accumulation_dtype, frobenius_sum, zero_with_gradient
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead

CHUNK_LOGITS = 2**25
"""Logits per chunk unless told otherwise: 128 MiB in float32, 220 positions of a vocabulary of 151,936.

Intermediate results and gradients take about ten times as much at the peak.
"""


def total_loss(sums: LossSums, coefficients: Coefficients, counts: GlobalCounts) -> Tensor:
    """Eq. 36 and 38: `(1 - α - β) CE + α T² KL + β F`, divided once by the counts of the global batch."""
    alpha, beta = coefficients.alpha, coefficients.beta
    per_token = (1 - alpha - beta) * sums.cross_entropy + alpha * coefficients.temperature**2 * sums.kl
    return per_token / counts.tokens + beta * sums.frobenius / counts.sequences


def distillation_loss_sums(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    batch: Batch,
    *,
    temperature: float,
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> LossSums:
    """Differentiable sums of CE, KL at `temperature`, and F (Eq. 37) where `frobenius` is given.

    Raises `UserError` when the batch's targets are not known at this temperature.
    """
    cross_entropy = kl = zero_with_gradient(hidden_states)
    divergence = divergence_at(
        temperature, batch.targets, batch.valid_positions, head, accumulation_dtype(hidden_states)
    )
    mask = batch.loss_mask
    chunks = list(_chunks(hidden_states[mask], head, batch.labels[mask], divergence, chunk_tokens))
    for number, chunk in enumerate(chunks, start=1):
        ce_sum, kl_sum = _chunk_sums(chunk, head, keep=number == len(chunks))
        cross_entropy, kl = cross_entropy + ce_sum, kl + kl_sum
    return LossSums(cross_entropy, kl, frobenius_sum(hidden_states, batch.averaged, mask, frobenius))


def dense_distillation_loss(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    batch: Batch,
    teacher_logits: Tensor,  # (B, T, V) or (B, T, V_padded)
    *,
    temperature: float,
    frobenius: FrobeniusTerm | None = None,
) -> LossSums:
    """The same sums from the teacher's full logits, without chunks: online distillation.

    The batch's own targets are not looked at.
    """
    mask = batch.loss_mask
    logits = head.logits(hidden_states[mask])
    teacher = teacher_logits[mask][:, : logits.shape[1]]
    return LossSums(
        cross_entropy=functional.cross_entropy(logits, batch.labels[mask], reduction="sum"),
        kl=dense_kl(teacher, logits, temperature).sum(),
        frobenius=frobenius_sum(hidden_states, batch.averaged, mask, frobenius),
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
