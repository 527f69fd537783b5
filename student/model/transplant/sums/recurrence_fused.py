"""The recurrence through the kernels of `recurrence_triton`: one operation of torch with gradients.

`torch.compile` leaves it whole. `recurrence.recurrence` is the twin.
"""

from typing import Any

import torch
from torch import Tensor

from delta_common.installed import has_triton
from student.model.kernels.chunks import Memory
from student.model.transplant.sums.recurrence import HeadInputs, chunk_on_gpu
from student.model.transplant.sums.weighted import Weighted

SMALLEST_SIZE = 64
"""Features and entries of a value. Triton 3.6 compiles tiles of 16 bfloat16 so that they are read past their end."""
HAS_TRITON = has_triton()
"""Asked once: a compiler stops at the question."""


def fits(inputs: HeadInputs, memory: Memory | None) -> bool:
    """Whether the kernels take these inputs: on a GPU, 16 bits, sizes powers of two, a memory without gradients."""
    sizes = (inputs.q.shape[-1], inputs.v.shape[-1])
    return (
        inputs.q.is_cuda
        and inputs.q.element_size() == 2
        and all(size >= SMALLEST_SIZE and size & (size - 1) == 0 for size in sizes)
        and not (memory is not None and torch.is_grad_enabled() and memory.c.requires_grad)
        and HAS_TRITON
    )


def recurrence(
    inputs: HeadInputs, memory: Memory | None, place: Tensor | None, *, wants_memory: bool
) -> tuple[Weighted, Memory]:
    """As `recurrence.recurrence`, of inputs that `fits` takes.

    Args:
        inputs: what the recurrence reads.
        memory: the memory before the sequence.
        place: each position's place in its document (B, T); None where none begins in the sequence.
        wants_memory: whether anybody reads the memory behind the sequence; it is empty otherwise.

    """
    begins = None
    if place is not None:
        begins = (torch.arange(place.shape[1], device=place.device) - place).to(torch.int32)
    before = (None, None, None) if memory is None else memory
    values, weight, log_scale, _, _, m, c, n = _recurrence(*inputs, begins, *before, wants_memory)
    return Weighted(values, weight, log_scale), Memory(c, n, m[..., -1])


@torch.library.custom_op("delta::weighted_recurrence", mutates_args=())
def _recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    begins: Tensor | None,
    c: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    wants_memory: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sums; the memory at the borders of all chunks; c and n behind the sequence."""
    from student.model.transplant.sums import recurrence_triton

    memory = None if c is None or n is None or m is None else Memory(c, n, m)
    sums, borders, after = _room(q, v, wants_memory=wants_memory)
    recurrence_triton.forward(HeadInputs(q, k, v, i, f), begins, memory, sums, borders, after)
    return (*sums, *borders, *after[:2])


@torch.library.custom_op("delta::weighted_recurrence_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    begins: Tensor | None,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    log_scale: Tensor,
    d_values: Tensor,
    d_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v of every head, i and f; the memory is that at the borders."""
    from student.model.transplant.sums import recurrence_triton

    inputs, borders = HeadInputs(q, k, v, i, f), Memory(c, n, m)
    d_q, d_k, d_v, d_i, d_f = recurrence_triton.backward(inputs, begins, borders, log_scale, d_values, d_weight)
    return d_q, d_k, d_v, d_i, d_f


def _room(q: Tensor, v: Tensor, *, wants_memory: bool) -> tuple[Weighted, Memory, Memory]:
    """Tensors for the sums, the memories at the borders of chunks, m behind the last too, and the memory after."""
    rows, heads, length, features = q.shape
    width, wide, chunks = v.shape[3], torch.float32, -(-length // chunk_on_gpu(q))
    values = q.new_empty(rows, length, heads, width, dtype=wide).transpose(1, 2)
    weight, log_scale = (q.new_empty(rows, heads, length, dtype=wide) for _ in range(2))
    c = q.new_empty(rows, heads, chunks, features, width)
    n = q.new_empty(rows, heads, chunks, features, dtype=wide)
    m = q.new_empty(rows, heads, chunks + 1, dtype=wide)
    kept = (rows if wants_memory else 0, heads, features)
    after = Memory(q.new_empty(*kept, width, dtype=wide), q.new_empty(kept, dtype=wide), m)
    return Weighted(values, weight, log_scale), Memory(c, n, m), after


@_recurrence.register_fake
def _(q: Tensor, _k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, ...]:
    sums, borders, after = _room(q, v, wants_memory=bool(rest[-1]))
    return (*sums, *borders, *after[:2])


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, i: Tensor, *_: object) -> tuple[Tensor, ...]:
    rows, heads, length, _features = q.shape
    wide = [x.new_empty(rows, length, heads, x.shape[3]).transpose(1, 2) for x in (q, k, v)]
    return (*wide, *(i.new_empty(rows, heads, length) for _ in range(2)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[3:6], output[2])
    ctx.set_materialize_grads(True)


def _gradients(ctx: Any, d_values: Tensor, d_weight: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    # The scale counts as a constant: see recurrence_triton.
    d_q, d_k, d_v, d_i, d_f = _backward(*ctx.saved_tensors, d_values, d_weight)
    d_v = torch.unflatten(d_v, 1, (ctx.saved_tensors[2].shape[1], -1)).sum(2)
    return d_q, d_k, d_v, d_i, d_f, None, None, None, None, None


_recurrence.register_autograd(_gradients, setup_context=_save)
