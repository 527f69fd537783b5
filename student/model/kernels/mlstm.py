"""The mLSTM cell over a sequence: gates, recurrence and norm. xlstm's own form is quadratic in the length."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from student.model.kernels import mlstm_torch
from student.model.kernels.chunks import LONGEST_CHUNK, Memory
from student.model.kernels.headwise import normalise_heads
from student.model.kernels.mlstm_torch import HeadInputs
from student.model.kernels.wide_product import wide_product

if TYPE_CHECKING:
    from xlstm.blocks.mlstm.cell import mLSTMCell

KERNELS = ("auto", "torch", "triton")

Recurrence = Callable[[HeadInputs, Memory | None, Tensor | None], tuple[Tensor, Memory]]

MemoryState = tuple[Tensor, Tensor, Tensor]
"""As xlstm's `step` keeps it: C (B, H, D, D), n (B, H, D, 1) and m (B, H, 1, 1)."""


def mlstm_sequence(
    cell: "mLSTMCell",
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: MemoryState | None = None,
    document_start: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, MemoryState]:
    """The output of xlstm's `mLSTMCell` for a sequence of any length, and the state for its `step`.

    Args:
        cell: an `mLSTMCell`; its gates and its output norm are used.
        q: queries (B, T, H·D), as keys `k` and values `v`.
        k: keys, unscaled.
        v: values.
        state: the memory before the first position; empty if not given.
        document_start: (B, T), true where the memory before that position is dropped.
        kernels: `torch` is plain torch on any device, `triton` mlstm_kernels' chunkwise kernels on CUDA tensors;
            `auto` takes `triton` where it is no less precise than what the caller asked for.

    Returns:
        The output (B, T, H·D) in the type of `q`, and the state after the last position, float32 or wider.

    Raises:
        ValueError: unknown `kernels`, or `triton` for what it cannot do.

    """
    h, after = mlstm_heads(head_inputs(cell, q, k, v), state, document_start, q.dtype, kernels)
    return normalise_heads(cell.outnorm, h).to(q.dtype), after


def head_inputs(cell: "mLSTMCell", q: Tensor, k: Tensor, v: Tensor) -> HeadInputs:
    """What the recurrence reads, in float32 or wider, from (B, T, H·D)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    i, f = _gates(cell, q, k, v).transpose(1, 2).chunk(2, dim=1)
    q, k, v = (_by_head(x, cell.config.num_heads).to(wide, memory_format=torch.contiguous_format) for x in (q, k, v))
    return HeadInputs(q, k, v, i, f)


def mlstm_heads(
    inputs: HeadInputs,
    state: MemoryState | None,
    document_start: Tensor | None,
    dtype: torch.dtype,
    kernels: str = "auto",
) -> tuple[Tensor, MemoryState]:
    """The recurrence alone: outputs (B, H, T, D) before the norm, float32 or wider, and the state.

    `dtype` is what the outputs are going to be rounded to.
    """
    memory = None if state is None else _memory(state, inputs.q.dtype)
    h, after = _recurrence(kernels, dtype, inputs, memory)(inputs, memory, document_start)
    return h, (after.c, after.n[..., None], after.m[..., None, None])


def _recurrence(kernels: str, dtype: torch.dtype, inputs: HeadInputs, memory: Memory | None) -> Recurrence:
    """What runs the recurrence for outputs in `dtype`."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}; it must be one of {', '.join(KERNELS)}")
    fits = inputs.q.dtype == torch.float32 and not _wants_gradients(memory)
    if kernels == "triton" and not fits:
        raise ValueError("kernels 'triton' takes no float64 and gives no gradients in a state; use 'auto'")
    # The kernels' products are TF32, finer than bfloat16 and float16 are coarse. Not so for float32, whatever the
    # caller allows its products: the forget gates' gradients are twice as far off as TF32 alone makes them.
    fine_enough = dtype in (torch.bfloat16, torch.float16)
    # A few tokens are faster in plain torch, and every length below a chunk would be compiled by itself.
    long_enough = inputs.q.shape[2] >= LONGEST_CHUNK
    if kernels == "triton" or (kernels == "auto" and inputs.q.is_cuda and fits and fine_enough and long_enough):
        from student.model.kernels import mlstm_triton

        return mlstm_triton.run
    return mlstm_torch.run


def _wants_gradients(memory: Memory | None) -> bool:
    return memory is not None and torch.is_grad_enabled() and any(part.requires_grad for part in memory)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, T, H·D) to (B, H, T, D)"""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _memory(state: MemoryState, dtype: torch.dtype) -> Memory:
    c, n, m = (part.to(dtype) for part in state)
    return Memory(c, n.squeeze(-1), m[..., 0, 0])


def _gates(cell: "mLSTMCell", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Pre-activations of the input gates and the forget gates, (B, T, 2·H), added up in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    by_input = torch.cat([cell.igate.weight, cell.fgate.weight]).to(q.dtype).chunk(3, dim=1)
    bias = torch.cat([cell.igate.bias, cell.fgate.bias]).to(wide)
    products = [wide_product(x, weight.contiguous()) for x, weight in zip((q, k, v), by_input, strict=True)]
    return products[0] + products[1] + products[2] + bias
