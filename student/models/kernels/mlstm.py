"""The mLSTM cell over a whole sequence: gates, recurrence and norm, in place of xlstm's form quadratic in its length."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from student.models.kernels import mlstm_native
from student.models.kernels.headwise import normalise_heads
from student.models.kernels.mlstm_native import HeadInputs, Memory

KERNELS = ("auto", "native", "triton")

MemoryState = tuple[Tensor, Tensor, Tensor]
"""As xlstm's `step` keeps it: C (B, H, D, D), n (B, H, D, 1) and m (B, H, 1, 1)."""


def mlstm_sequence(
    cell: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: MemoryState | None = None,
    document_start: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, MemoryState]:
    """What xlstm's `mLSTMCell` gives for a sequence of any length, and the state that its `step` goes on from.

    Args:
        cell: an `mLSTMCell`; its gates and its output norm are used.
        q: queries (B, T, H·D), as keys `k` and values `v`.
        k: keys, unscaled.
        v: values.
        state: the memory before the first position; empty if not given.
        document_start: (B, T), true where the memory before that position is dropped.
        kernels: `native` is plain torch on any device, `triton` mlstm_kernels' chunkwise kernels on CUDA tensors;
            `auto` takes `triton` where it is no less precise than what the caller asked for.

    Returns:
        The output (B, T, H·D) in the type of `q`, and the state after the last position, float32 or wider.

    Raises:
        ValueError: unknown `kernels`, or `triton` for what it cannot do.

    """
    wide = torch.promote_types(q.dtype, torch.float32)
    heads = cell.config.num_heads
    i, f = _gates(cell, q, k, v).to(wide).transpose(1, 2).chunk(2, dim=1)
    q_heads, k_heads, v_heads = (x.to(wide).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    inputs = HeadInputs(q_heads, k_heads, v_heads, i, f)
    memory = None if state is None else Memory(state[0].to(wide), state[1].squeeze(-1).to(wide), state[2][..., 0, 0].to(wide))
    h, after = mlstm_native.run(inputs, memory, document_start)
    return normalise_heads(cell.outnorm, h).to(q.dtype), (after.c, after.n[..., None], after.m[..., None, None])


def _gates(cell: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Pre-activations of the input gates and the forget gates, (B, T, 2·H)."""
    by_input = torch.cat([cell.igate.weight, cell.fgate.weight]).chunk(3, dim=1)
    bias = torch.cat([cell.igate.bias, cell.fgate.bias])
    products = [functional.linear(x, weight) for x, weight in zip((q, k, v), by_input, strict=True)]
    return products[0] + products[1] + products[2] + bias

