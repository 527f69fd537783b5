"""The passes of a fused loss as Triton kernels: one program a position, logits read twice and written once.

Logits may be float32, bfloat16 or float16; arithmetic is in float32. Imported for tensors on a GPU only; the twin is
`student.softmax_passes.TorchPasses`.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from student.softmax_passes import LogPartitions, TeacherReading

BLOCK = 4096
"""Logits a program holds at once."""


class TritonPasses:
    """See `student.softmax_passes.SoftmaxPasses`."""

    def read(self, logits: Tensor, temperature: float) -> LogPartitions:
        """Both sums of exponentials in one pass, relative to the largest logit so far."""
        at_one, at_temperature = _rows(logits), _rows(logits)
        if len(logits):
            _read_kernel[(len(logits),)](
                logits,
                at_one,
                at_temperature,
                logits.stride(0),
                logits.shape[1],
                1 / temperature,
                same=temperature == 1,
                block=BLOCK,
            )
        return LogPartitions(temperature, at_one, at_temperature)

    def write(self, logits: Tensor, found: LogPartitions, at_one: Tensor, at_temperature: Tensor) -> None:
        """Exponentials are taken again: cheaper than keeping them."""
        if len(logits):
            _write_kernel[(len(logits),)](
                logits,
                found.at_one,
                found.at_temperature,
                at_one.contiguous(),
                at_temperature.contiguous(),
                logits.stride(0),
                logits.shape[1],
                1 / found.temperature,
                same=found.temperature == 1,
                block=BLOCK,
            )

    def read_teacher(self, teacher: Tensor, logits: Tensor, temperature: float) -> TeacherReading:
        """The sum of exponentials and the weighted differences in one pass."""
        log_partition, difference = _rows(logits), _rows(logits)
        if len(logits):
            _read_teacher_kernel[(len(logits),)](
                teacher,
                logits,
                log_partition,
                difference,
                teacher.stride(0),
                logits.stride(0),
                logits.shape[1],
                1 / temperature,
                block=BLOCK,
            )
        return TeacherReading(temperature, log_partition, difference)

    def subtract_teacher(self, logits: Tensor, teacher: Tensor, found: TeacherReading, weight: float) -> None:
        """The teacher's probabilities exist in registers only."""
        if len(logits):
            _subtract_teacher_kernel[(len(logits),)](
                logits,
                teacher,
                found.log_partition,
                logits.stride(0),
                teacher.stride(0),
                logits.shape[1],
                1 / found.temperature,
                weight,
                block=BLOCK,
            )


def _rows(logits: Tensor) -> Tensor:
    return torch.empty(len(logits), dtype=torch.float32, device=logits.device)


@triton.jit
def _read_kernel(
    logits, at_one, at_temperature, stride, vocab, inverse_temperature, same: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = tl.full((), -1e38, tl.float32)
    sum_one = tl.zeros((), tl.float32)
    sum_temperature = tl.zeros((), tl.float32)
    for first in range(0, vocab, block):
        inside = first + columns < vocab
        s = tl.load(logits + row * stride + first + columns, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(s, axis=0))
        sum_one = sum_one * tl.exp(peak - higher) + tl.sum(tl.exp(s - higher), axis=0)
        if not same:
            fallen = tl.exp((peak - higher) * inverse_temperature)
            sum_temperature = sum_temperature * fallen + tl.sum(tl.exp((s - higher) * inverse_temperature), axis=0)
        peak = higher
    tl.store(at_one + row, peak + tl.log(sum_one))
    if same:
        tl.store(at_temperature + row, peak + tl.log(sum_one))
    else:
        tl.store(at_temperature + row, peak * inverse_temperature + tl.log(sum_temperature))


@triton.jit
def _write_kernel(
    logits,
    log_one,
    log_temperature,
    at_one,
    at_temperature,
    stride,
    vocab,
    inverse_temperature,
    same: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    log_z_one, log_z_temperature = tl.load(log_one + row), tl.load(log_temperature + row)
    factor_one, factor_temperature = tl.load(at_one + row), tl.load(at_temperature + row)
    for first in range(0, vocab, block):
        inside = first + columns < vocab
        place = logits + row * stride + first + columns
        s = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        if same:
            gradient = (factor_one + factor_temperature) * tl.exp(s - log_z_one)
        else:
            gradient = factor_one * tl.exp(s - log_z_one)
            gradient += factor_temperature * tl.exp(s * inverse_temperature - log_z_temperature)
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _read_teacher_kernel(
    teacher,
    logits,
    log_partition,
    difference,
    teacher_stride,
    stride,
    vocab,
    inverse_temperature,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = tl.full((), -1e38, tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    for first in range(0, vocab, block):
        inside = first + columns < vocab
        t = tl.load(teacher + row * teacher_stride + first + columns, mask=inside, other=-1e30).to(tl.float32)
        s = tl.load(logits + row * stride + first + columns, mask=inside, other=0.0).to(tl.float32)
        higher = tl.maximum(peak, tl.max(t, axis=0))
        fallen = tl.exp((peak - higher) * inverse_temperature)
        p = tl.where(inside, tl.exp((t - higher) * inverse_temperature), 0.0)
        total = total * fallen + tl.sum(p, axis=0)
        weighted = weighted * fallen + tl.sum(p * (t - s), axis=0)
        peak = higher
    tl.store(log_partition + row, peak * inverse_temperature + tl.log(total))
    tl.store(difference + row, weighted / total * inverse_temperature)


@triton.jit
def _subtract_teacher_kernel(
    logits, teacher, log_partition, stride, teacher_stride, vocab, inverse_temperature, weight, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    log_z = tl.load(log_partition + row)
    for first in range(0, vocab, block):
        inside = first + columns < vocab
        place = logits + row * stride + first + columns
        gradient = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(teacher + row * teacher_stride + first + columns, mask=inside, other=0.0).to(tl.float32)
        gradient -= weight * tl.exp(t * inverse_temperature - log_z)
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)
