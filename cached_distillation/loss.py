"""The loss of δ-distillation for any student with an LM head: `student-train`'s, without its trainer."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from cached_distillation.batch import CachedBatch
from cached_distillation.head import real_head
from cached_distillation.step import own_counts
from delta_common.errors import UserError
from student.data.batch import GlobalCounts
from student.loss.distillation import DistillationLoss, loss_against
from student.loss.divergence import Divergence, divergence_at
from student.loss.frobenius import FrobeniusTerm, accumulation_dtype
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead

P = ParamSpec("P")
T = TypeVar("T")


def not_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function, run as it is inside what torch.compile compiles: its chunks depend on the data."""
    return cast(Callable[P, T], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@not_compiled
def distillation_loss(
    hidden_states: Tensor,  # (B, T, d)
    lm_head: nn.Module,
    batch: CachedBatch,
    *,
    alpha: float,
    temperature: float,
    beta: float = 0.0,
    counts: GlobalCounts | None = None,
    teacher_head: FrozenHead | None = None,
    frobenius: FrobeniusTerm | None = None,
    chunk_tokens: int | None = None,
) -> DistillationLoss:
    """`(1 - α - β) CE + α T² KL + β F` (Eq. 38): `.total` to go backward from, and the sums it is made of.

    The head is applied to chunks of the positions that count, and its gradient is made on the way: their logits never
    exist all at once. Under autocast they are computed in its type.

    Args:
        hidden_states: what the head is applied to, (B, T, d), after the last norm.
        lm_head: a linear layer of at least as many rows as the cache has tokens, trained or frozen. Its product must be
            the student's logits: what a model does behind its head is not seen here (`causal_lm_loss` refuses it).
        batch: on the device of the hidden states.
        alpha: weight of the teacher's term, 0 to 1.
        temperature: softening temperature T, in the cache's range.
        beta: weight of the Frobenius term, which needs hidden states in the data set, as wide as the student's.
        counts: what sums are divided by, `step_counts` of all micro-batches and processes; else this batch's own.
        teacher_head: for a cache in exact mode, `CacheDataset.teacher_head()` on the same device.
        frobenius: how F is taken; the norm of each sequence unless said otherwise.
        chunk_tokens: positions per chunk; by default as many as memory for them allows.

    Raises `UserError` for another vocabulary, a temperature outside the cached range, and weights above 1 in sum.

    """
    coefficients = _checked(alpha, temperature, beta)
    _require_one_per_token(hidden_states, batch)
    device = hidden_states.device.type
    head = real_head(lm_head, batch.stored.manifest.vocab_size, device)
    frobenius = _require_states(hidden_states, batch, frobenius) if beta else None
    with torch.autocast(device, enabled=False):
        return loss_against(
            _divergence(hidden_states, head, batch, temperature, teacher_head),
            hidden_states,
            head,
            batch.widened,
            coefficients,
            counts or own_counts(batch),
            frobenius=frobenius,
            chunk_tokens=chunk_tokens,
        )


def _checked(alpha: float, temperature: float, beta: float) -> Coefficients:
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} {value:g}: give a weight from 0 to 1")
    if alpha + beta > 1:
        raise UserError(f"alpha {alpha:g} and beta {beta:g} sum to more than 1; lower one of them")
    if not temperature > 0:
        raise UserError(f"temperature {temperature:g}: give one above 0")
    return Coefficients(alpha, temperature, beta)


def _require_one_per_token(hidden_states: Tensor, batch: CachedBatch) -> None:
    shape = tuple(batch.loss_mask.shape)
    if hidden_states.shape[:-1] != shape:
        raise UserError(
            f"hidden states of shape {tuple(hidden_states.shape)} for rows of shape {shape}: there must be one per "
            "token; prompt tuning, which adds some, does not fit"
        )


def _divergence(
    hidden_states: Tensor, head: FrozenHead, batch: CachedBatch, temperature: float, teacher_head: FrozenHead | None
) -> Divergence:
    """From the teacher at the batch's valid positions to the student."""
    rows = batch.widened
    if batch.stored.layout.mode == "exact":
        if teacher_head is None:
            raise UserError("the cache is in exact mode; give teacher_head=dataset.teacher_head()")
        head = teacher_head.to(dtype=head.weight.dtype)
    return divergence_at(temperature, rows.targets, rows.valid_positions, head, accumulation_dtype(hidden_states))


def _require_states(hidden_states: Tensor, batch: CachedBatch, term: FrobeniusTerm | None) -> FrobeniusTerm:
    """The Frobenius term; raises `UserError` unless there are states to compare with."""
    states = batch.widened.averaged
    if states is None:
        raise UserError("beta above 0 needs CacheDataset(…, hidden_states=True) over a cache that has hidden states")
    width = batch.stored.manifest.hidden_size
    if width != hidden_states.shape[-1]:
        raise UserError(
            f"beta above 0: the student's hidden states have {hidden_states.shape[-1]} channels, the teacher's "
            f"{width}; set beta to 0"
        )
    return term or FrobeniusTerm()
