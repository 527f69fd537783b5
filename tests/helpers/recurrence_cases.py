"""Inputs of the fused recurrence, and how far it is from the twin in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from student.model.kernels.chunks import Memory
from student.model.transplant.mixing import places
from student.model.transplant.sums.recurrence import HeadInputs, recurrence
from student.model.transplant.sums.recurrence_fused import recurrence as fused
from student.model.transplant.sums.weighted import Weighted


@dataclass(frozen=True)
class Case:
    """Sizes and kind of one call."""

    rows: int
    heads: int
    key_heads: int
    length: int
    features: int
    width: int
    dtype: torch.dtype
    documents: bool = False
    memory: bool = False


def worst_error(case: Case, device: str = "cpu") -> float:
    """The largest relative error of sums, gradients and the memory after the sequence."""
    inputs, memory, starts = _made(case)
    seen = torch.full((case.rows,), 7 if case.memory else 0)
    place = places(starts, seen, case.length) if case.documents or case.memory else None
    exact = HeadInputs(*(x.double().requires_grad_() for x in inputs))
    expected = _outcome(
        *recurrence(exact, None if memory is None else Memory(*(x.double() for x in memory)), starts), exact
    )
    ours = HeadInputs(*(x.to(device).requires_grad_() for x in inputs))
    memory = None if memory is None else Memory(*(x.to(device) for x in memory))
    found = fused(ours, memory, None if place is None else place.to(device), wants_memory=True)
    errors = [
        float((a.double().cpu() - b).norm() / b.norm()) for a, b in zip(_outcome(*found, ours), expected, strict=True)
    ]
    return max(errors)


def _made(case: Case) -> tuple[HeadInputs, Memory | None, Tensor | None]:
    random = torch.Generator().manual_seed(case.length + case.features)
    head = (case.rows, case.heads)
    q, k = 4 * torch.rand(2, *head, case.length, case.features, generator=random) / case.features
    v = torch.randn(case.rows, case.key_heads, case.length, case.width, generator=random)
    i, f = torch.randn(2, *head, case.length, generator=random)
    memory = None
    if case.memory:
        c, n = torch.randn(*head, case.features, case.width, generator=random), torch.rand(*head, case.features)
        memory = Memory(c, n, torch.randn(head, generator=random))
    starts = None
    if case.documents:
        starts = torch.zeros(case.rows, case.length, dtype=torch.bool)
        starts[0, [5, case.length // 2]] = True
        starts[-1, [0, 64 % case.length, case.length - 1]] = True
    q, k, v = (x.to(case.dtype) for x in (q, k, v))
    return HeadInputs(q, k, v, i, logsigmoid(f + 3)), memory, starts


def _outcome(sums: Weighted, memory: Memory, inputs: HeadInputs) -> list[Tensor]:
    """The mean, its gradients and those of the sum of weights, and the memory in one scale."""
    random = torch.Generator().manual_seed(1)
    upstream = torch.randn(sums.values.shape, generator=random).to(sums.values)
    means = sums.values / sums.weight[..., None]
    logarithm = sums.weight.log() + sums.log_scale
    gradients = torch.autograd.grad((means * upstream).sum() + (logarithm * upstream[..., 0]).sum(), list(inputs))
    scale = memory.m.detach().exp()
    kept = [memory.c.detach() * scale[..., None, None], memory.n.detach() * scale[..., None]]
    return [means.detach(), logarithm.detach(), *gradients, *kept]
