# Kernels are Triton's language: their arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""The kernel of `LayerSum` on a GPU: it adds several states while the sum is in registers."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


def add_in_turn(total: Tensor, states: Sequence[Tensor]) -> None:
    """total += state, in order, for one to four contiguous states of total's shape; total is float32, contiguous."""
    first, *_ = states
    filled = [*states, *[first] * (4 - len(states))]
    with torch.cuda.device_of(total):
        _add[(triton.cdiv(total.numel(), BLOCK),)](total, *filled, total.numel(), count=len(states), block=BLOCK)


@triton.jit
def _add(total, first, second, third, fourth, size, count: tl.constexpr, block: tl.constexpr):
    where = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = where < size
    found = tl.load(total + where, mask=inside)
    found += tl.load(first + where, mask=inside).to(tl.float32)
    if count > 1:
        found += tl.load(second + where, mask=inside).to(tl.float32)
    if count > 2:
        found += tl.load(third + where, mask=inside).to(tl.float32)
    if count > 3:
        found += tl.load(fourth + where, mask=inside).to(tl.float32)
    tl.store(total + where, found, mask=inside)
