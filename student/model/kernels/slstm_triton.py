# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The sLSTM recurrence on a GPU: one Triton kernel forward, one backward, each running through time by itself.

Heads are independent, so a program owns one head for `ROWS` rows: it keeps their state and, where they fit, the head's
four recurrent matrices on a multiprocessor for all steps. The backward kernel stores the gradient of the
pre-activations; those of the recurrent kernel and bias are products over all steps, made afterwards. Symbols are those
of `slstm`; everything is float32 but the recurrent product of 16-bit inputs, whose factors have their type.
"""

from collections.abc import Sequence

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

ROWS = 16
"""Rows per program: the fewest that a matrix product takes."""

SCRATCH_BYTES = 16 * 1024
"""Shared memory for moving the tiles of a step between layouts."""


def forward(
    inputs: Tensor, kernel: Tensor, bias: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Hidden states (B, T, K, D), final state (4, B, K, D), both float32, and what `backward` needs.

    Takes inputs (B, T, 4, K, D), kernel (K, 4·D, D), bias (4, K, D), state (4, B, K, D) and document starts (B, T).
    """
    batch, length, _, heads, head_dim = inputs.shape
    weights = kernel.to(inputs.dtype).contiguous()
    state = state.float().contiguous()
    gates = torch.empty(inputs.shape, dtype=torch.float32, device=inputs.device)
    hidden = torch.empty(batch, length, heads, head_dim, dtype=torch.float32, device=inputs.device)
    memory = torch.empty(batch, length + 1, 3, heads, head_dim, dtype=torch.float32, device=inputs.device)
    memory[:, 0] = state[1:].transpose(0, 1)
    arguments = (inputs.contiguous(), weights, bias.float().contiguous(), state[0], _bytes(starts))
    with torch.cuda.device_of(inputs):  # type: ignore[no-untyped-call]
        _forward_kernel[_grid(inputs)](
            *arguments, gates, memory, hidden, batch, length, **_options(weights, heads, starts)
        )
    final = torch.cat([hidden[:, -1:], memory[:, -1]], dim=1).transpose(0, 1).contiguous()
    return hidden, final, (gates, memory, weights)


def backward(
    saved: Sequence[Tensor], starts: Tensor | None, d_hidden: Tensor, d_final: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward` in inputs (B, T, 4, K, D), in their type, and state (4, B, K, D), in float32.

    The gradient in the inputs is also that of the pre-activations: those of kernel and bias follow from it.
    """
    gates, memory, weights = saved
    batch, length, _, heads, head_dim = gates.shape
    d_state = d_hidden.new_zeros(4, batch, heads, head_dim) if d_final is None else d_final.clone()
    d_gates = torch.empty_like(gates, dtype=weights.dtype)
    arguments = (gates, memory, weights, _bytes(starts), d_hidden.contiguous(), d_state.contiguous(), d_gates)
    with torch.cuda.device_of(gates):  # type: ignore[no-untyped-call]
        _backward_kernel[_grid(gates)](*arguments, batch, length, **_options(weights, heads, starts))
    return d_gates, arguments[5]


def _bytes(starts: Tensor | None) -> Tensor | None:
    return None if starts is None else starts.to(torch.uint8).contiguous()


def _grid(gates: Tensor) -> tuple[int, int]:
    return gates.shape[3], triton.cdiv(gates.shape[0], ROWS)


def _options(weights: Tensor, heads: int, starts: Tensor | None) -> dict[str, object]:
    """Compile-time sizes and choices. One stage: pipelined copies of the matrices would not fit."""
    head_dim = weights.shape[-1]
    padded = max(16, triton.next_power_of_2(head_dim))
    return {
        "heads": heads,
        "head_dim": head_dim,
        "padded": padded,
        "rows": ROWS,
        "has_starts": starts is not None,
        "resident": _matrices_fit(padded, weights),
        "precision": "tf32x3" if weights.dtype == torch.float32 else "tf32",
        "num_warps": 4 if padded < 64 else 8,
        "num_stages": 1,
    }


def _matrices_fit(padded: int, weights: Tensor) -> bool:
    """Whether a head's matrices stay in shared memory for all steps; else each step reads them again, from caches.

    Float32 matrices lie there twice, as leading and trailing parts. In the interpreter, both ways are taken.
    """
    if not weights.is_cuda:
        return padded <= 64
    available = torch.cuda.get_device_properties(weights.device).shared_memory_per_multiprocessor
    parts = 2 if weights.dtype == torch.float32 else 1
    return bool(parts * 4 * padded * padded * weights.element_size() + SCRATCH_BYTES <= available)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _load_four(at, width, mask):
    """Four tiles, `width` entries apart."""
    i = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(at + width, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(at + 2 * width, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(at + 3 * width, mask=mask, other=0.0).to(tl.float32)
    return i, f, z, o


@triton.jit
def _store_four(at, i, f, z, o, width, mask):
    """Four tiles, `width` entries apart."""
    tl.store(at, i, mask=mask)
    tl.store(at + width, f, mask=mask)
    tl.store(at + 2 * width, z, mask=mask)
    tl.store(at + 3 * width, o, mask=mask)


@triton.jit
def _load_memory(at, width, mask):
    """c, n and m; where there is nothing n is 1, which can be divided by."""
    c = tl.load(at, mask=mask, other=0.0)
    n = tl.load(at + width, mask=mask, other=1.0)
    m = tl.load(at + 2 * width, mask=mask, other=0.0)
    return c, n, m


@triton.jit
def _forget(start, c, n, m):
    return tl.where(start, 0.0, c), tl.where(start, 0.0, n), tl.where(start, 0.0, m)


@triton.jit
def _matrix(weights, head, gate: tl.constexpr, output, source, head_dim: tl.constexpr):
    """A gate's recurrent matrix from entries `source` to entries `output`, index tensors that broadcast to a tile."""
    at = ((head * 4 + gate) * head_dim + output) * head_dim + source
    return tl.load(weights + at, mask=(output < head_dim) & (source < head_dim), other=0.0)


@triton.jit
def _matrices(weights, head, output, source, head_dim: tl.constexpr):
    r_i = _matrix(weights, head, 0, output, source, head_dim)
    r_f = _matrix(weights, head, 1, output, source, head_dim)
    r_z = _matrix(weights, head, 2, output, source, head_dim)
    r_o = _matrix(weights, head, 3, output, source, head_dim)
    return r_i, r_f, r_z, r_o


@triton.jit
def _forward_kernel(
    inputs,
    weights,
    bias,
    first_hidden,
    starts,
    gates,
    memory,
    hidden,
    batch,
    length,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
    has_starts: tl.constexpr,
    resident: tl.constexpr,
    precision: tl.constexpr,
):
    """Fill gates (B, T, 4, K, D), memory (B, T + 1, 3, K, D) after its first step, and hidden (B, T, K, D)."""
    width: tl.constexpr = heads * head_dim
    head = tl.program_id(0)
    row = (tl.program_id(1) * rows + tl.arange(0, rows)).to(tl.int64)[:, None]
    source, output = tl.arange(0, padded)[:, None], tl.arange(0, padded)[None, :]
    unit = head * head_dim + output
    mask = (row < batch) & (output < head_dim)
    b_i, b_f, b_z, b_o = _load_four(bias + unit, width, output < head_dim)
    if resident:
        r_i, r_f, r_z, r_o = _matrices(weights, head, output, source, head_dim)
    memory_at = memory + row * (length + 1) * 3 * width + unit
    gates_at = row * length * 4 * width + unit
    hidden_at = hidden + row * length * width + unit
    h = tl.load(first_hidden + row * width + unit, mask=mask, other=0.0)
    c, n, m = _load_memory(memory_at, width, mask)
    next_i, next_f, next_z, next_o = _load_four(inputs + gates_at, width, mask)
    for step in range(length):
        i, f, z, o = next_i, next_f, next_z, next_o
        # What the next step reads is on its way while this one computes.
        ahead = inputs + gates_at + 4 * width
        next_i, next_f, next_z, next_o = _load_four(ahead, width, mask & (step + 1 < length))
        if has_starts:
            start = tl.load(starts + row * length + step, mask=row < batch, other=0) != 0
            h = tl.where(start, 0.0, h)
            c, n, m = _forget(start, c, n, m)
        factor = h.to(weights.dtype.element_ty)
        if not resident:
            r_i = _matrix(weights, head, 0, output, source, head_dim)
        i += b_i + tl.dot(factor, r_i, input_precision=precision)
        if not resident:
            r_f = _matrix(weights, head, 1, output, source, head_dim)
        f += b_f + tl.dot(factor, r_f, input_precision=precision)
        if not resident:
            r_z = _matrix(weights, head, 2, output, source, head_dim)
        z += b_z + tl.dot(factor, r_z, input_precision=precision)
        if not resident:
            r_o = _matrix(weights, head, 3, output, source, head_dim)
        o += b_o + tl.dot(factor, r_o, input_precision=precision)
        kept = m + _log_sigmoid(f)
        m = tl.where(n == 0.0, i, tl.maximum(i, kept))
        iota = tl.exp(i - m)
        phi = tl.exp(tl.minimum(kept - m, 0.0))
        c = phi * c + iota * _tanh(z)
        n = phi * n + iota
        h = tl.sigmoid(o) * c / n
        memory_at += 3 * width
        _store_four(gates + gates_at, i, f, z, o, width, mask)
        tl.store(memory_at, c, mask=mask)
        tl.store(memory_at + width, n, mask=mask)
        tl.store(memory_at + 2 * width, m, mask=mask)
        tl.store(hidden_at, h, mask=mask)
        gates_at += 4 * width
        hidden_at += width


@triton.jit
def _backward_kernel(
    gates,
    memory,
    weights,
    starts,
    d_hidden,
    d_state,
    d_gates,
    batch,
    length,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
    has_starts: tl.constexpr,
    resident: tl.constexpr,
    precision: tl.constexpr,
):
    """Fill d_gates (B, T, 4, K, D); d_state (4, B, K, D) comes as that of the last state and leaves as the first's."""
    width: tl.constexpr = heads * head_dim
    head = tl.program_id(0)
    row = (tl.program_id(1) * rows + tl.arange(0, rows)).to(tl.int64)[:, None]
    output, source = tl.arange(0, padded)[:, None], tl.arange(0, padded)[None, :]
    unit = head * head_dim + source
    mask = (row < batch) & (source < head_dim)
    if resident:
        r_i, r_f, r_z, r_o = _matrices(weights, head, output, source, head_dim)
    memory_at = memory + (row * (length + 1) + length) * 3 * width + unit
    gates_at = (row * length + length) * 4 * width + unit
    hidden_at = d_hidden + (row * length + length) * width + unit
    state_at = d_state + row * width + unit
    c, n, m = _load_memory(memory_at, width, mask)
    d_h, d_c, d_n, d_m = _load_four(state_at, batch * width, mask)
    surplus = d_m - c * d_c - n * d_n
    next_i, next_f, next_z, next_o = _load_four(gates + gates_at - 4 * width, width, mask)
    next_c, next_n, next_m = _load_memory(memory_at - 3 * width, width, mask)
    next_d_h = tl.load(hidden_at - width, mask=mask, other=0.0)
    for back in range(length):
        memory_at -= 3 * width
        gates_at -= 4 * width
        hidden_at -= width
        d_h += next_d_h
        i, f, z, o = next_i, next_f, next_z, next_o
        c_stored, n_stored, m_stored = next_c, next_n, next_m
        more = mask & (back + 1 < length)
        next_i, next_f, next_z, next_o = _load_four(gates + gates_at - 4 * width, width, more)
        next_c, next_n, next_m = _load_memory(memory_at - 3 * width, width, more)
        next_d_h = tl.load(hidden_at - width, mask=more, other=0.0)
        c_before, n_before, m_before = c_stored, n_stored, m_stored
        if has_starts:
            start = tl.load(starts + row * length + (length - 1 - back), mask=row < batch, other=0) != 0
            c_before, n_before, m_before = _forget(start, c_stored, n_stored, m_stored)
        iota = tl.exp(i - m)
        phi = tl.exp(tl.minimum(m_before + _log_sigmoid(f) - m, 0.0))
        value = _tanh(z)
        sigma = tl.sigmoid(o)
        d_c += d_h * sigma / n
        d_n -= d_h * sigma * c / (n * n)
        to_input = tl.where(i == m, surplus, 0.0)
        surplus -= to_input
        g_i = iota * (d_c * value + d_n) + to_input
        g_f = tl.sigmoid(-f) * (phi * (d_c * c_before + d_n * n_before) + surplus)
        g_z = iota * d_c * (1 - value * value)
        g_o = d_h * sigma * (1 - sigma) * c / n
        _store_four(d_gates + gates_at, g_i, g_f, g_z, g_o, width, mask)
        kind = weights.dtype.element_ty
        if not resident:
            r_i = _matrix(weights, head, 0, output, source, head_dim)
        d_h = tl.dot(g_i.to(kind), r_i, input_precision=precision)
        if not resident:
            r_f = _matrix(weights, head, 1, output, source, head_dim)
        d_h += tl.dot(g_f.to(kind), r_f, input_precision=precision)
        if not resident:
            r_z = _matrix(weights, head, 2, output, source, head_dim)
        d_h += tl.dot(g_z.to(kind), r_z, input_precision=precision)
        if not resident:
            r_o = _matrix(weights, head, 3, output, source, head_dim)
        d_h += tl.dot(g_o.to(kind), r_o, input_precision=precision)
        d_c *= phi
        d_n *= phi
        if has_starts:
            d_h, d_c, d_n = _forget(start, d_h, d_c, d_n)
        c, n, m = c_stored, n_stored, m_stored
    _store_four(state_at, d_h, d_c, d_n, c * d_c + n * d_n + surplus, batch * width, mask)
