"""The teacher's term, KL(p_T ‖ q_T) at each position, for each way in which a cache keeps the teacher.

- bucket (top_k and the mass of the rest): `Σ_kept p_i (log p_i - log q_i) + p_rest (log p_rest - log q_rest)`, the
  kept entries and one bucket for all others; exact where everything is kept.
- sampled: `CE_T - H(p_T)` with `CE_T = logsumexp(s/T) - Σ_kept (p_i/π_i) s_i/T` from student logits s. Its
  expectation is the full vocabulary's, and so is that of its gradient `(q_T - p̂_T)/T`; at one position it may be
  negative. The weights are not rescaled to sum to 1, which would make it biased.
- exact: the teacher's logits, recomputed from its final hidden state by the LM head that both share.

Each has its value for autograd (`kl`), and its value and gradient at once in closed form (`write_gradient`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from student.data.batch import TeacherTargets
from student.loss.softmax_passes import SoftmaxPasses
from student.model.frozen import FrozenHead
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.targets import estimate

NO_MASS = LOG_MASS_FLOOR + 10
"""A rest whose log-probability is below this counts as 0: the floor, with room for the interpolation's rounding."""

LOWEST = -1e30
"""Stands for a logit of -inf, with finite gradients."""


@dataclass(frozen=True)
class TermWeights:
    """What the gradients of the two terms are multiplied by."""

    cross_entropy: float
    kl: float


@dataclass(frozen=True)
class Divergence(ABC):
    """KL(p_T ‖ q_T) at n positions; axis 0 of every field that is a tensor is the position."""

    temperature: float

    @abstractmethod
    def kl(self, student_logits: Tensor) -> Tensor:
        """KL at each position, (n,), without the factor T²; from student logits (n, V)."""

    @abstractmethod
    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        """Logsumexp of student logits s (n, V) and KL at each position, (n,) in float32 or wider.

        The logits are replaced by `weights.cross_entropy softmax(s) + weights.kl dKL/ds`.
        """

    def measured_kl(self, student_logits: Tensor) -> Tensor:
        """`kl` for who asks for its value alone, by the sharpest estimate there is."""
        return self.kl(student_logits)

    def workspace(self, positions: int) -> Tensor | None:  # noqa: ARG002
        """The memory that `with_logits` needs for so many positions; None if none."""
        return None

    def with_logits(self, workspace: Tensor | None) -> "Divergence":  # noqa: ARG002
        """The same divergence, with the teacher's logits computed where `write_gradient` needs them."""
        return self

    @abstractmethod
    def first_choices(self) -> Tensor:
        """The teacher's likeliest token at each position, (n,) int64."""

    def split(self, size: int) -> Iterator[Self]:
        """The same divergence for `size` positions at a time, in order."""
        parts = {name: torch.split(value, size) for name, value in vars(self).items() if isinstance(value, Tensor)}
        for tensors in zip(*parts.values(), strict=True):
            yield replace(self, **dict(zip(parts, tensors, strict=True)))


@dataclass(frozen=True)
class BucketDivergence(Divergence):
    """From the top_k and the mass of all others."""

    ids: Tensor  # (n, K)
    values: Tensor  # (n, K)
    log_rest: Tensor  # (n,), A(1/T)

    def kl(self, student_logits: Tensor) -> Tensor:
        return bucketed_kl(student_logits, self.ids, self.values, self.log_rest, self.temperature)

    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        """`T dKL/ds_j` is P q_j - p_j at kept j, (P - p_rest / q_rest) q_j at others; P = Σ p is 1 up to rounding.

        The kept logits are taken out first, so that the passes see the others and nothing is a difference of sums.
        """
        temperature = self.temperature
        log_p, log_p_rest = _teacher_log_probabilities(self.values, self.log_rest, temperature)
        p, p_rest = log_p.exp(), torch.where(log_p_rest > NO_MASS, log_p_rest.exp(), 0.0)
        used = self.values > -torch.inf
        ids = torch.where(used, self.ids, self.ids[:, :1])
        kept = logits.gather(1, ids).to(p.dtype).masked_fill(~used, LOWEST)
        logits.scatter_(1, ids, max(LOWEST, torch.finfo(logits.dtype).min))
        others = passes.read(logits, temperature)
        log_one = torch.logaddexp(kept.logsumexp(dim=-1), others.at_one)
        log_z = torch.logaddexp((kept / temperature).logsumexp(dim=-1), others.at_temperature)
        log_q, log_q_rest = kept / temperature - log_z[:, None], others.at_temperature - log_z
        mass, weight = p.sum(dim=-1) + p_rest, weights.kl / temperature
        passes.write(
            logits,
            others,
            weights.cross_entropy * (others.at_one - log_one).exp(),
            weight * (mass * log_q_rest.exp() - p_rest),
        )
        at_kept = weights.cross_entropy * (kept - log_one[:, None]).exp() + weight * (mass[:, None] * log_q.exp() - p)
        logits.scatter_add_(1, ids, at_kept.masked_fill(~used, 0.0).to(logits.dtype))
        bucket = torch.where(p_rest > 0, p_rest * (log_p_rest - log_q_rest), 0.0)
        return log_one, _divergence(log_p, log_q) + bucket

    def first_choices(self) -> Tensor:
        return self.ids[:, 0]


@dataclass(frozen=True)
class SampledDivergence(Divergence):
    """From the top_k and sampled entries, each weighted by the inverse of its inclusion probability."""

    ids: Tensor  # (n, K)
    weights: Tensor  # (n, K), p_i(T) / pi_i
    entropy: Tensor  # (n,), of p(T)
    values: Tensor  # (n, K), raw logits
    log_partition: Tensor  # (n,), log Z(T) relative to the largest logit

    def kl(self, student_logits: Tensor) -> Tensor:
        scaled = student_logits / self.temperature
        cross_entropy = scaled.logsumexp(dim=-1) - (self.weights * scaled.gather(1, self.ids)).sum(dim=-1)
        return cross_entropy - self.entropy

    def measured_kl(self, student_logits: Tensor) -> Tensor:
        """Σ w (log p - log q), ten times as sharp as `kl` for a student near its teacher: both terms have the same w.

        Nor does it change with what is added to all logits. Its gradient would: Σ w is 1 on average alone.
        """
        scaled = student_logits / self.temperature
        log_q = scaled.gather(1, self.ids) - scaled.logsumexp(dim=-1, keepdim=True)
        log_p = estimate.relative_logits(self.values) / self.temperature - self.log_partition[:, None]
        return (self.weights * (log_p - log_q).masked_fill(self.weights == 0, 0.0)).sum(dim=-1)

    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        """`T dKL/ds = q_T - p̂_T`: a softmax, and the entries' weights taken off."""
        kept = logits.gather(1, self.ids).to(self.weights.dtype)
        found = passes.read(logits, self.temperature)
        weight = weights.kl / self.temperature
        passes.write(logits, found, *_everywhere(found.at_one, weights.cross_entropy, weight))
        logits.scatter_add_(1, self.ids, (-weight * self.weights).to(logits.dtype))
        cross_entropy = found.at_temperature - (self.weights * kept).sum(dim=-1) / self.temperature
        return found.at_one, cross_entropy - self.entropy

    def first_choices(self) -> Tensor:
        return self.ids[:, 0]


@dataclass(frozen=True)
class ExactDivergence(Divergence):
    """From the teacher's final hidden states; its logits exist for one chunk at a time."""

    final_hidden: Tensor  # (n, d)
    head: FrozenHead

    def kl(self, student_logits: Tensor) -> Tensor:
        return dense_kl(self.head.logits(self.final_hidden), student_logits, self.temperature)

    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        return self.with_logits(self.workspace(len(logits))).write_gradient(logits, weights, passes)

    def workspace(self, positions: int) -> Tensor:
        return self.head.workspace(positions)

    def with_logits(self, workspace: Tensor | None) -> "DenseDivergence":
        assert workspace is not None
        found = self.head.logits_into(workspace[: len(self.final_hidden)], self.final_hidden)
        return DenseDivergence(self.temperature, found)

    def first_choices(self) -> Tensor:
        return self.head.logits(self.final_hidden).argmax(dim=-1)


@dataclass(frozen=True)
class DenseDivergence(Divergence):
    """From the teacher's logits over the whole vocabulary, which `write_gradient` overwrites."""

    teacher: Tensor  # (n, V)

    def kl(self, student_logits: Tensor) -> Tensor:
        return dense_kl(self.teacher, student_logits, self.temperature)

    def write_gradient(self, logits: Tensor, weights: TermWeights, passes: SoftmaxPasses) -> tuple[Tensor, Tensor]:
        """`T dKL/ds = q_T - p_T`, and `KL = Σ p (t - s)/T - logsumexp(t/T) + logsumexp(s/T)` from logits t and s."""
        teacher = self.teacher.to(logits.dtype)
        reading = passes.read_teacher(teacher, logits, self.temperature)
        found = passes.read(logits, self.temperature)
        factors = _everywhere(found.at_one, weights.cross_entropy, weights.kl / self.temperature)
        passes.write(logits, found, *factors, reading)
        return found.at_one, reading.difference - reading.log_partition + found.at_temperature

    def first_choices(self) -> Tensor:
        return self.teacher.argmax(dim=-1)


def divergence_at(
    temperature: float,
    targets: TeacherTargets,
    positions: Tensor,  # (n,) int64, of the flattened batch
    head: FrozenHead,
    dtype: torch.dtype,
) -> Divergence:
    """The divergence at n positions, in order; computed in `dtype`.

    Raises `UserError` naming the cached range when entries are not known at this temperature.
    """
    layout = targets.layout
    if targets.final_hidden is not None:
        return ExactDivergence(temperature, targets.final_hidden.flatten(0, 1)[positions], head)
    assert targets.ids is not None
    assert targets.values is not None
    assert targets.log_mass is not None
    ids, values, log_mass = (x.flatten(0, 1)[positions] for x in (targets.ids, targets.values, targets.log_mass))
    values, log_mass = values.to(dtype), log_mass.to(dtype)
    if layout.samples:
        found = estimate.estimate_at(values, log_mass, layout, temperature)
        return SampledDivergence(temperature, ids, found.weights, found.entropy, values, found.log_partition)
    return BucketDivergence(temperature, ids, values, estimate.log_rest(log_mass, layout, temperature))


def dense_kl(
    teacher_logits: Tensor,  # (n, V)
    student_logits: Tensor,  # (n, V)
    temperature: float,
) -> Tensor:
    """KL(p_T ‖ q_T) at each position, (n,), over the whole vocabulary, in the student logits' dtype."""
    teacher = teacher_logits.to(student_logits.dtype)
    log_p = functional.log_softmax(teacher / temperature, dim=-1)
    return _divergence(log_p, functional.log_softmax(student_logits / temperature, dim=-1))


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


def _everywhere(like: Tensor, one: float, other: float) -> tuple[Tensor, Tensor]:
    """Each value at every position."""
    return torch.full_like(like, one), torch.full_like(like, other)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p - log q) over the last axis; an entry of p = 0 adds nothing."""
    finite = log_p.masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * (finite - log_q)).sum(dim=-1)
