"""The chunkwise recurrence against its equations written step by step in float64."""

import math

import pytest
import torch
from torch import Tensor

from student.model.kernels.chunks import LONGEST_CHUNK, Memory
from student.model.kernels.mlstm_torch import EPSILON, HeadInputs, run


def random_inputs(length: int, seed: int = 0) -> HeadInputs:
    """Two rows, three heads of four channels."""
    random = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, length, 4, generator=random, dtype=torch.float64)
    i, f = 2 * torch.randn(2, 2, 3, length, generator=random, dtype=torch.float64)
    return HeadInputs(q, k, v, i, f)


def by_steps(inputs: HeadInputs, memory: Memory | None, starts: Tensor | None) -> tuple[Tensor, Memory]:
    """The docstring's equations, one position after another."""
    q, k, v, i, f = inputs
    batch, heads, length, head = q.shape
    c, n = q.new_zeros(batch, heads, head, head), q.new_zeros(batch, heads, head)
    m = q.new_full((batch, heads), -1e30)
    if memory is not None:
        c, n, m = memory
    outputs = []
    for t in range(length):
        if starts is not None:
            m = torch.where(starts[:, t, None], q.new_tensor(-1e30), m)
        kept = torch.nn.functional.logsigmoid(f[:, :, t]) + m
        m = torch.maximum(kept, i[:, :, t])
        phi, iota = torch.exp(kept - m)[..., None], torch.exp(i[:, :, t] - m)[..., None]
        key = k[:, :, t] / math.sqrt(head)
        c = phi[..., None] * c + iota[..., None] * key[..., None] * v[:, :, t, None]
        n = phi * n + iota * key
        numerator = (q[:, :, t, None] @ c).squeeze(-2)
        bottom = torch.maximum((q[:, :, t] * n).sum(-1).abs(), torch.exp(-m)) + EPSILON
        outputs.append(numerator / bottom[..., None])
    return torch.stack(outputs, dim=2), Memory(c, n, m)


@pytest.mark.parametrize("from_memory", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("length", [1, 5, LONGEST_CHUNK, LONGEST_CHUNK + 1, 150])
def test_chunks_are_the_steps(length: int, documents: bool, from_memory: bool) -> None:
    inputs = random_inputs(length)
    memory = by_steps(random_inputs(3, seed=1), None, None)[1] if from_memory else None
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(2)) < 0.1 if documents else None
    (found, after), (expected, final) = run(inputs, memory, starts), by_steps(inputs, memory, starts)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    # The same memory may be named with another stabiliser.
    scale, wanted_scale = torch.exp(after.m), torch.exp(final.m)
    assert torch.allclose(after.n * scale[..., None], final.n * wanted_scale[..., None], rtol=1e-8, atol=1e-10)
    assert torch.allclose(
        after.c * scale[..., None, None], final.c * wanted_scale[..., None, None], rtol=1e-8, atol=1e-10
    )
