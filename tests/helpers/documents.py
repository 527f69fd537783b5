"""Document starts as tests give them, and comparing gradients of two forms of one computation."""

from itertools import pairwise

import torch
from torch import Tensor


def starts_of(length: int, rows: tuple[list[int], list[int]]) -> Tensor:
    """Starts (2, length) at the named positions of two rows."""
    starts = torch.zeros(2, length, dtype=torch.bool)
    for row, positions in enumerate(rows):
        starts[row, positions] = True
    return starts


def spans(starts: Tensor) -> list[slice]:
    """The documents of one row (T,)."""
    bounds = [0, *(starts[1:].nonzero().flatten() + 1).tolist(), len(starts)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def assert_same_gradients(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """To 1e-9 of each gradient's size, for one random upstream gradient."""
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    ours, theirs = (torch.autograd.grad(y, leaves, upstream) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * max(1.0, float(other.abs().max())))
