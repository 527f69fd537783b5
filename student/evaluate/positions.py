"""Student and teacher at each valid position at T = 1, from which every held-out number is computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from delta_common.errors import UserError
from student.data.batch import TeacherTargets, valid_positions
from student.loss.divergence import Divergence, divergence_at
from student.model.frozen import FrozenHead
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.read.cache import Cache
from teacher_cache.targets import estimate

CHUNK_LOGITS = 2**25
"""Most logits in memory at a time."""


@dataclass(frozen=True)
class StudentPositions:
    """The student at n valid positions, (n,) each, in nats; kl and agreement are None without a teacher."""

    cross_entropy: Tensor
    """Of the true next token."""
    confidence: Tensor
    """Probability of the first choice."""
    correct: Tensor
    """Whether the first choice is the next token."""
    kl: Tensor | None
    """KL(teacher ‖ student); may be negative at single positions where the teacher is known by samples."""
    agreement: Tensor | None
    """Whether the teacher's first choice is the same."""


@dataclass(frozen=True)
class TeacherPositions:
    """The teacher at n valid positions, (n,) each, in nats."""

    cross_entropy: Tensor
    """Of the true next token where it was kept, else a lower bound."""
    known: Tensor
    """Whether the next token was kept."""
    confidence: Tensor
    correct: Tensor


def require_temperature_one(cache: Cache, option: str) -> None:
    """Raise a `UserError` naming the option when a cache's targets are not known at T = 1."""
    if cache.layout.mode == "exact":
        return
    try:
        interpolation_weights(cache.layout.node_temperatures, 1.0)
    except UserError as error:
        raise UserError(f"{option} {cache.path}: {error}; build one whose targets.temperatures begin at 1") from error


@torch.no_grad()
def student_positions(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T) int64
    loss_mask: Tensor,  # (B, T) bool
    targets: TeacherTargets | None,
    *,
    teacher_head: FrozenHead | None = None,
    chunk_tokens: int | None = None,
) -> StudentPositions:
    """The student at the valid positions, in order, compared with its teacher where `targets` are given.

    `teacher_head` is the teacher's where `head` is no longer it.

    Raises `UserError` when the targets are not known at T = 1, see `require_temperature_one`.
    """
    hidden, next_tokens = hidden_states[loss_mask], labels[loss_mask]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    places = valid_positions(loss_mask)
    divergence = None if targets is None else divergence_at(1.0, targets, places, teacher_head or head, dtype)
    size = chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight))
    teachers: Iterator[Divergence | None] = repeat(None) if divergence is None else divergence.split(size)
    found: dict[str, list[Tensor]] = {}
    for states, following, teacher in zip(
        torch.split(hidden, size), torch.split(next_tokens, size), teachers, strict=False
    ):
        logits = head.logits(states)
        parts = _of_logits(logits, following)
        if teacher is not None:
            parts |= {"kl": teacher.measured_kl(logits), "agreement": logits.argmax(dim=-1) == teacher.first_choices()}
        for name, values in parts.items():
            found.setdefault(name, []).append(values)
    whole: dict[str, Any] = {name: torch.cat(values) for name, values in found.items()}
    return StudentPositions(**({"kl": None, "agreement": None} | whole))


@torch.no_grad()
def teacher_positions(
    head: FrozenHead, labels: Tensor, loss_mask: Tensor, targets: TeacherTargets, *, chunk_tokens: int | None = None
) -> TeacherPositions:
    """The teacher at the valid positions, in order, from its cached targets; arguments as above."""
    next_tokens = labels[loss_mask]
    if targets.final_hidden is None:
        return _of_entries(targets, loss_mask, next_tokens)
    final = targets.final_hidden[loss_mask]
    size = chunk_tokens or max(1, CHUNK_LOGITS // len(head.weight))
    chunks = zip(torch.split(final, size), torch.split(next_tokens, size), strict=True)
    parts = [_of_logits(head.logits(states), following) for states, following in chunks]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return TeacherPositions(**whole, known=torch.ones_like(whole["correct"]))


def _of_logits(logits: Tensor, next_tokens: Tensor) -> dict[str, Tensor]:
    """From logits (n, V)."""
    highest, choice = logits.max(dim=-1)
    return {
        "cross_entropy": functional.cross_entropy(logits, next_tokens, reduction="none"),
        "confidence": torch.exp(highest - logits.logsumexp(dim=-1)),
        "correct": choice == next_tokens,
    }


def _of_entries(targets: TeacherTargets, loss_mask: Tensor, next_tokens: Tensor) -> TeacherPositions:
    """From kept entries. A token not kept is no likelier than the last of the top_k, nor than all others together."""
    assert targets.ids is not None
    assert targets.values is not None
    assert targets.log_mass is not None
    ids, values, log_mass = (x[loss_mask] for x in (targets.ids, targets.values, targets.log_mass))
    layout = targets.layout
    log_p = estimate.log_probabilities(values, log_mass, layout, 1.0)
    log_rest = estimate.log_rest(log_mass, layout, 1.0) - estimate.log_partition(values, log_mass, layout, 1.0)
    is_next = (ids == next_tokens[:, None]) & (values > -torch.inf)
    known = is_next.any(dim=-1)
    kept = torch.where(is_next, log_p, -torch.inf).amax(dim=-1)
    highest = torch.minimum(log_p[:, layout.top_k - 1], log_rest)
    return TeacherPositions(
        cross_entropy=-torch.where(known, kept, highest),
        known=known,
        confidence=torch.exp(log_p[:, 0]),
        correct=ids[:, 0] == next_tokens,
    )
