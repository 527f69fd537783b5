"""Every pass of `softmax_passes_triton` against its twin in torch; imported by tests, or run on a device by name."""

import sys

import torch
from torch import Tensor

from student.loss.softmax_passes import SoftmaxPasses, TorchPasses
from student.loss.softmax_passes_triton import TritonPasses

ROWS, VOCAB, PADDED = 5, 9001, 9100
"""More than two blocks, not a multiple of one; rows lie further apart than they are long."""


def logits_of(seed: int, device: str, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    values = 6 * torch.randn(ROWS, PADDED, generator=random)
    values[1] += 200  # a plain exponential overflows
    values[2, 17] = -65504  # as a kept entry that was taken out
    values[3, 5000] = 80  # the largest logit in a later block
    return values.to(device, dtype)[:, :VOCAB]


def outcome(passes: SoftmaxPasses, logits: Tensor, teacher: Tensor | None, temperature: float) -> list[Tensor]:
    """All that a use of the passes gives: log-sum-exps, the teacher's numbers, and the gradient in place of logits."""
    reading = None if teacher is None else passes.read_teacher(teacher, logits, temperature)
    found = passes.read(logits, temperature)
    factors = torch.linspace(0.2, 1.0, ROWS, device=logits.device)
    passes.write(logits, found, factors, 1 - factors / 2, reading)
    numbers = [found.at_one, found.at_temperature]
    return [*numbers, *([] if reading is None else [reading.log_partition, reading.difference]), logits]


def compare(device: str, dtype: torch.dtype, temperature: float, *, with_teacher: bool) -> None:
    """Raises `AssertionError` where kernels differ from torch in float64 by more than the logits' rounding."""
    logits = logits_of(0, device, dtype)
    teacher = logits_of(1, device, dtype) if with_teacher else None
    exact = [None if x is None else x.double() for x in (logits, teacher)]
    assert exact[0] is not None
    expected = outcome(TorchPasses(torch.empty_like(exact[0])), exact[0], exact[1], temperature)
    found = outcome(TritonPasses(), logits, teacher, temperature)
    rounding = torch.finfo(dtype).eps
    for ours, right in zip(found[:-1], expected[:-1], strict=True):
        assert torch.allclose(ours.double(), right, rtol=1e-6, atol=1e-4), (dtype, temperature, ours, right)
    error = (found[-1].double() - expected[-1]).norm() / expected[-1].norm()
    assert error < max(rounding, 2e-5), (dtype, temperature, with_teacher, float(error))


def compare_all(device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for temperature in (1.0, 1.37, 2.0):
            for with_teacher in (False, True):
                compare(device, dtype, temperature, with_teacher=with_teacher)


if __name__ == "__main__":
    compare_all(sys.argv[1])
    print("compared")
