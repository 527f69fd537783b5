"""The teacher's term of a variant: out of the cache, from all logits, from the teacher itself, or from biased accounts.

The biased ones are made here, of the exact logits, since nobody should train on them: the k largest renormalised, with
the rest dropped, or with the rest as one bucket.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from student.data.batch import Batch
from student.loss.divergence import (
    BucketDivergence,
    DenseDivergence,
    Divergence,
    ExactDivergence,
    TermWeights,
    divergence_at,
)
from student.loss.softmax_passes import SoftmaxPasses
from student.model.frozen import FrozenHead
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.teacher.model import Teacher

Account = Callable[[Batch, Tensor, float], Divergence | None]
"""(batch, its valid positions (n,), temperature) → the teacher's term there."""


def make_account(spec: str, head: FrozenHead, teacher: Teacher | None) -> Account:
    """What `Variant.teacher` says; `head` is the teacher's, the teacher itself is needed by `online` only."""
    kind, _, k = spec.partition(":")
    if kind == "none":
        return lambda *_: None
    if kind == "online":
        assert teacher is not None
        return lambda batch, places, temperature: DenseDivergence(temperature, online_logits(teacher, batch, places))
    if kind == "cache":
        return lambda batch, places, temperature: divergence_at(temperature, batch.targets, places, head, torch.float32)
    if kind == "exact":
        return lambda batch, places, temperature: ExactDivergence(temperature, final_states(batch, places), head)
    makers = {"bucket": bucket, "renormalised": renormalised, "dropped": dropped}
    make, count = makers[kind], int(k)
    return lambda batch, places, temperature: make(head.logits(final_states(batch, places)), count, temperature)


def final_states(batch: Batch, places: Tensor) -> Tensor:
    """The teacher's final states (n, d) at places (n,) of the flattened batch, of an exact cache."""
    assert batch.targets.final_hidden is not None
    return batch.targets.final_hidden.flatten(0, 1)[places]


def online_logits(teacher: Teacher, batch: Batch, places: Tensor) -> Tensor:
    """The teacher's logits (n, V) float32 at places (n,) of the flattened batch, computed now."""
    starts = None if batch.document_start is None else batch.document_start.cpu()
    states = teacher.states(batch.inputs, mean=False, document_start=starts).final.flatten(0, 1)[places]
    return torch.cat([logits.float() for _, logits in teacher.logits_in_chunks(states)])


def bucket(logits: Tensor, k: int, temperature: float) -> BucketDivergence:
    """The k largest of logits (n, V) and the mass of all others."""
    values, ids = logits.topk(k, dim=-1)
    others = logits.scatter(1, ids, -torch.inf) - values[:, :1]
    log_rest = (others / temperature).logsumexp(dim=-1).clamp(min=LOG_MASS_FLOOR)
    return BucketDivergence(temperature, ids, values, log_rest)


def renormalised(logits: Tensor, k: int, temperature: float) -> BucketDivergence:
    """The k largest of logits (n, V) as if there were no others."""
    values, ids = logits.topk(k, dim=-1)
    return BucketDivergence(temperature, ids, values, torch.full_like(values[:, 0], LOG_MASS_FLOOR))


def dropped(logits: Tensor, k: int, temperature: float) -> "DroppedDivergence":
    """The k largest of logits (n, V) at their true probabilities, and nothing for the others."""
    values, ids = logits.topk(k, dim=-1)
    log_p = values / temperature - (logits / temperature).logsumexp(dim=-1, keepdim=True)
    return DroppedDivergence(temperature, ids, log_p)


@dataclass(frozen=True)
class DroppedDivergence(Divergence):
    """`Σ_top p_i (log p_i - log q_i)`, which is no divergence: it wants less than all of q's mass at the top."""

    ids: Tensor  # (n, K)
    log_p: Tensor  # (n, K)

    def kl(self, student_logits: Tensor) -> Tensor:
        log_q = functional.log_softmax(student_logits / self.temperature, dim=-1).gather(1, self.ids)
        return (self.log_p.exp() * (self.log_p - log_q)).sum(dim=-1)

    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        """`T d/ds = P q_T - p` with P the mass at the top."""
        p, kept = self.log_p.exp(), logits.gather(1, self.ids)
        found = passes.read(logits, self.temperature)
        weight = weights.kl / self.temperature
        passes.write(logits, found, torch.full_like(found.at_one, weights.cross_entropy), weight * p.sum(dim=-1))
        logits.scatter_add_(1, self.ids, (-weight * p).to(logits.dtype))
        log_q = kept / self.temperature - found.at_temperature[:, None]
        return found.at_one, (p * (self.log_p - log_q)).sum(dim=-1)

    def first_choices(self) -> Tensor:
        return self.ids[:, 0]
