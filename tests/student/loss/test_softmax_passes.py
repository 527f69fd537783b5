"""Torch's passes against the definitions of what they read and write, in float64."""

import pytest
import torch
from torch import Tensor

from student.loss.softmax_passes import TorchPasses


def logits_of(seed: int) -> Tensor:
    values = 4 * torch.randn(5, 37, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[1] += 800  # a plain exponential overflows
    return values


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
def test_a_use_of_the_passes_is_its_definition(temperature: float, with_teacher: bool) -> None:
    logits, teacher = logits_of(0), logits_of(1) if with_teacher else None
    passes = TorchPasses(torch.empty(7, 37, dtype=torch.float64))
    s, p = logits.clone(), torch.zeros_like(logits)
    reading = None
    if teacher is not None:
        t = teacher.clone()
        p = torch.softmax(t / temperature, -1)
        reading = passes.read_teacher(teacher, logits, temperature)
        assert torch.allclose(reading.log_partition, torch.logsumexp(t / temperature, -1), rtol=1e-12)
        assert torch.allclose(reading.difference, (p * (t - s)).sum(-1) / temperature, rtol=1e-10)
    found = passes.read(logits, temperature)
    assert torch.allclose(found.at_one, torch.logsumexp(s, -1), rtol=1e-12)
    assert torch.allclose(found.at_temperature, torch.logsumexp(s / temperature, -1), rtol=1e-12)
    one, other = torch.linspace(0.2, 1, 5).double(), torch.linspace(-1, 0.5, 5).double()
    passes.write(logits, found, one, other, reading)
    at_temperature = torch.softmax(s / temperature, -1)
    expected = one[:, None] * torch.softmax(s, -1) + other[:, None] * (at_temperature - p)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-14)
