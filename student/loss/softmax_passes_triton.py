"""The passes of a fused loss as Triton kernels: one program per position, logits read twice and written once.

Logits may be float32, bfloat16 or float16; arithmetic is in float32. Imported for tensors on a GPU only; the twin is
`student.loss.softmax_passes.TorchPasses`.
"""

# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from student.loss.softmax_passes import LogPartitions, TeacherReading

BLOCK, WARPS = 4096, 8
"""Logits that a program holds at once, and the warps that share them."""


class TritonPasses:
    """See `student.loss.softmax_passes.SoftmaxPasses`."""

    def read(self, logits: Tensor, temperature: float) -> LogPartitions:
        """Both sums of exponentials in one pass, relative to the largest logit so far."""
        at_one, at_temperature = _rows(logits), _rows(logits)
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _read_kernel[(len(logits),)](
                logits,
                at_one,
                at_temperature,
                logits.stride(0),
                1 / temperature,
                vocab=logits.shape[1],
                same=temperature == 1,
                block=BLOCK,
                num_warps=WARPS,
            )
        return LogPartitions(temperature, at_one, at_temperature)

    def read_teacher(self, teacher: Tensor, logits: Tensor, temperature: float) -> TeacherReading:
        """The sum of exponentials and the weighted differences in one pass."""
        log_partition, difference = _rows(logits), _rows(logits)
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _read_teacher_kernel[(len(logits),)](
                teacher,
                logits,
                log_partition,
                difference,
                teacher.stride(0),
                logits.stride(0),
                1 / temperature,
                vocab=logits.shape[1],
                block=BLOCK,
                num_warps=WARPS,
            )
        return TeacherReading(teacher, log_partition, difference)

    def write(
        self,
        logits: Tensor,
        found: LogPartitions,
        at_one: Tensor,
        at_temperature: Tensor,
        reading: TeacherReading | None = None,
    ) -> None:
        """Computes the exponentials again, which is cheaper than keeping them, and rounds once."""
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            _write_kernel[(len(logits),)](
                logits,
                logits if reading is None else reading.teacher,
                found.at_one,
                found.at_temperature,
                found.at_one if reading is None else reading.log_partition,
                at_one,
                at_temperature,
                logits.stride(0),
                logits.stride(0) if reading is None else reading.teacher.stride(0),
                1 / found.temperature,
                vocab=logits.shape[1],
                same=found.temperature == 1,
                with_teacher=reading is not None,
                block=BLOCK,
                num_warps=WARPS,
            )


def _rows(logits: Tensor) -> Tensor:
    return torch.empty(len(logits), dtype=torch.float32, device=logits.device)


@triton.jit
def _read_kernel(
    logits,
    at_one,
    at_temperature,
    stride,
    inverse_temperature,
    vocab: tl.constexpr,
    same: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = tl.full((), -1e38, tl.float32)
    sum_one = tl.zeros((), tl.float32)
    sum_temperature = tl.zeros((), tl.float32)
    whole: tl.constexpr = vocab - vocab % block
    for first in range(0, whole, block):
        s = tl.load(logits + row * stride + first + columns).to(tl.float32)
        peak, sum_one, sum_temperature = _read_block(s, peak, sum_one, sum_temperature, inverse_temperature, same)
    if whole < vocab:
        place = logits + row * stride + whole + columns
        s = tl.load(place, mask=whole + columns < vocab, other=-float("inf")).to(tl.float32)
        peak, sum_one, sum_temperature = _read_block(s, peak, sum_one, sum_temperature, inverse_temperature, same)
    tl.store(at_one + row, peak + tl.log(sum_one))
    if same:
        tl.store(at_temperature + row, peak + tl.log(sum_one))
    else:
        tl.store(at_temperature + row, peak * inverse_temperature + tl.log(sum_temperature))


@triton.jit
def _read_block(s, peak, sum_one, sum_temperature, inverse_temperature, same: tl.constexpr):
    """The sums of exponentials with those of a block of logits, and what they are relative to."""
    higher = tl.maximum(peak, tl.max(s, axis=0))
    sum_one = sum_one * tl.exp(peak - higher) + tl.sum(tl.exp(s - higher), axis=0)
    if not same:
        fallen = tl.exp((peak - higher) * inverse_temperature)
        sum_temperature = sum_temperature * fallen + tl.sum(tl.exp((s - higher) * inverse_temperature), axis=0)
    return higher, sum_one, sum_temperature


@triton.jit
def _read_teacher_kernel(
    teacher,
    logits,
    log_partition,
    difference,
    teacher_stride,
    stride,
    inverse_temperature,
    vocab: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    peak = tl.full((), -1e38, tl.float32)
    total = tl.zeros((), tl.float32)
    weighted = tl.zeros((), tl.float32)
    for first in range(0, vocab, block):
        inside = first + columns < vocab
        t = tl.load(teacher + row * teacher_stride + first + columns, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(logits + row * stride + first + columns, mask=inside, other=0.0).to(tl.float32)
        higher = tl.maximum(peak, tl.max(tl.where(inside, t, -1e38), axis=0))
        fallen = tl.exp((peak - higher) * inverse_temperature)
        p = tl.where(inside, tl.exp((t - higher) * inverse_temperature), 0.0)
        total = total * fallen + tl.sum(p, axis=0)
        weighted = weighted * fallen + tl.sum(p * (t - s), axis=0)
        peak = higher
    tl.store(log_partition + row, peak * inverse_temperature + tl.log(total))
    tl.store(difference + row, weighted / total * inverse_temperature)


@triton.jit
def _write_kernel(
    logits,
    teacher,
    log_one,
    log_temperature,
    log_teacher,
    at_one,
    at_temperature,
    stride,
    teacher_stride,
    inverse_temperature,
    vocab: tl.constexpr,
    same: tl.constexpr,
    with_teacher: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    log_z_one, log_z_temperature = tl.load(log_one + row), tl.load(log_temperature + row)
    log_z_teacher = tl.load(log_teacher + row)
    factor_one, factor_temperature = tl.load(at_one + row), tl.load(at_temperature + row)
    whole: tl.constexpr = vocab - vocab % block
    teacher_row = teacher + row * teacher_stride
    for first in range(0, whole, block):
        place = logits + row * stride + first + columns
        s = tl.load(place).to(tl.float32)
        t = s
        if with_teacher:
            t = tl.load(teacher_row + first + columns).to(tl.float32)
        own, difference = _softmaxes(
            s, t, log_z_one, log_z_temperature, log_z_teacher, inverse_temperature, same, with_teacher
        )
        gradient = factor_one * own + factor_temperature * difference
        tl.store(place, gradient.to(logits.dtype.element_ty))
    if whole < vocab:
        inside = whole + columns < vocab
        place = logits + row * stride + whole + columns
        s = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        t = s
        if with_teacher:
            t = tl.load(teacher_row + whole + columns, mask=inside, other=0.0).to(tl.float32)
        own, difference = _softmaxes(
            s, t, log_z_one, log_z_temperature, log_z_teacher, inverse_temperature, same, with_teacher
        )
        gradient = factor_one * own + factor_temperature * difference
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _softmaxes(
    s,
    t,
    log_z_one,
    log_z_temperature,
    log_z_teacher,
    inverse_temperature,
    same: tl.constexpr,
    with_teacher: tl.constexpr,
):
    """`softmax(s)` of a block, and `softmax(s / T)` less the teacher's `softmax(t / T)` where there is one."""
    own = tl.exp(s - log_z_one)
    difference = own
    if not same:
        difference = tl.exp(s * inverse_temperature - log_z_temperature)
    if with_teacher:
        difference -= tl.exp(t * inverse_temperature - log_z_teacher)
    return own, difference
