"""The two passes of a fused loss over the logits: read both log-sum-exps, then overwrite the logits by the gradient.

`SoftmaxPasses` says what a pass does. `TorchPasses` does it with torch's operations on any device; on a GPU the
kernels of `softmax_passes_triton` do the same without a second buffer. Positions are independent of each other.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogPartitions:
    """Log-sum-exps (n,) of logits s at each position, in float32 or wider."""

    temperature: float
    at_one: Tensor
    """logsumexp(s)"""
    at_temperature: Tensor
    """logsumexp(s / T)"""


@dataclass(frozen=True)
class TeacherReading:
    """Of teacher logits t beside student logits s, with p = softmax(t / T)."""

    teacher: Tensor
    """(n, V), overwritten in a way only the passes know."""
    log_partition: Tensor
    """(n,), logsumexp(t / T)"""
    difference: Tensor
    """(n,), Σ p (t - s) / T"""


class SoftmaxPasses(Protocol):
    """Passes over logits (n, V). Between a `read` and its `write` nobody else may use the logits."""

    def read(self, logits: Tensor, temperature: float) -> LogPartitions:
        """Both log-sum-exps of each position."""

    def read_teacher(self, teacher: Tensor, logits: Tensor, temperature: float) -> TeacherReading:
        """The teacher's logits (n, V) beside the student's; comes before `read`."""

    def write(
        self,
        logits: Tensor,
        found: LogPartitions,
        at_one: Tensor,
        at_temperature: Tensor,
        reading: TeacherReading | None = None,
    ) -> None:
        """Replace logits s by `at_one softmax(s) + at_temperature (softmax(s / T) - p)`, factors (n,).

        p is 0 without a teacher.
        """


@dataclass(frozen=True)
class TorchPasses:
    """The passes with `torch.softmax`, which is several times faster than separate exponentials and sums."""

    scratch: Tensor
    """(at least n, V) of the logits' dtype: the softmax at T."""

    def read(self, logits: Tensor, temperature: float) -> LogPartitions:
        """The logits become softmax(s), the scratch softmax(s / T)."""
        peak = logits.amax(dim=-1)
        if temperature == 1:
            at_one = _log_partition(logits, peak)
            return LogPartitions(temperature, at_one, at_one)
        scaled = torch.mul(logits, 1 / temperature, out=self._like(logits))
        return LogPartitions(temperature, _log_partition(logits, peak), _log_partition(scaled, peak / temperature))

    def read_teacher(self, teacher: Tensor, logits: Tensor, temperature: float) -> TeacherReading:
        """The teacher's logits become softmax(t / T)."""
        teacher.mul_(1 / temperature)
        p = torch.softmax(teacher, dim=-1, out=self._like(logits))
        log_partition = teacher.amax(dim=-1) - p.amax(dim=-1).log()
        difference = torch.linalg.vecdot(p, teacher.sub_(logits, alpha=1 / temperature))
        return TeacherReading(teacher.copy_(p), log_partition, difference)

    def write(
        self,
        logits: Tensor,
        found: LogPartitions,
        at_one: Tensor,
        at_temperature: Tensor,
        reading: TeacherReading | None = None,
    ) -> None:
        """Combine the softmaxes."""
        if found.temperature == 1:
            logits.mul_((at_one + at_temperature)[:, None])
        else:
            logits.mul_(at_one[:, None]).addcmul_(self._like(logits), at_temperature[:, None])
        if reading is not None:
            logits.addcmul_(reading.teacher, at_temperature[:, None], value=-1)

    def _like(self, logits: Tensor) -> Tensor:
        return self.scratch[: len(logits)]


def _log_partition(logits: Tensor, peak: Tensor) -> Tensor:
    """Logsumexp (n,) of logits (n, V), which become their softmax; its largest value belongs to the peak (n,)."""
    torch.softmax(logits, dim=-1, out=logits)
    return peak - logits.amax(dim=-1).log()
