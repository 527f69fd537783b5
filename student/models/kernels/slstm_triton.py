# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""The sLSTM recurrence on a GPU: one Triton kernel forward, one backward, each running through time by itself.

Heads do not talk to each other, so a program owns one head for `ROWS` rows: it keeps their state, and where they fit
the head's four recurrent matrices, on its multiprocessor for all steps. The backward kernel stores the gradient of the
pre-activations; those of the recurrent kernel and bias are products over all steps, made afterwards. Symbols are those
of `slstm`; everything is float32 but the recurrent product of 16-bit inputs, whose factors have their type.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Rows a program: the least a matrix product takes."""

RESIDENT_BYTES = 128 * 1024
"""Recurrent matrices of a head up to this size stay in registers; larger ones are read again at each step."""


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
    _forward_kernel[_grid(inputs)](*arguments, gates, memory, hidden, batch, length, **_options(weights, heads, starts))
    final = torch.cat([hidden[:, -1:], memory[:, -1]], dim=1).transpose(0, 1).contiguous()
    return hidden, final, (gates, memory, weights)


def backward(
    saved: Sequence[Tensor], kernel: Tensor, starts: Tensor | None, d_hidden: Tensor, d_final: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward` in inputs (B, T, 4, K, D) and state (4, B, K, D), in float32.

    The gradient in the inputs is also that of the pre-activations: those of kernel and bias follow from it.
    """
    gates, memory, weights = saved
    batch, length, _, heads, head_dim = gates.shape
    d_state = d_hidden.new_zeros(4, batch, heads, head_dim) if d_final is None else d_final.clone()
    d_gates = torch.empty_like(gates)
    arguments = (gates, memory, weights, _bytes(starts), d_hidden.contiguous(), d_state.contiguous(), d_gates)
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
        "resident": 4 * padded * padded * weights.element_size() <= RESIDENT_BYTES,
        "precision": "tf32x3" if weights.dtype == torch.float32 else "tf32",
        "num_warps": {16: 4, 32: 4, 64: 8}.get(padded, 16),
        "num_stages": 1,
    }


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _matrix(weights, head, gate: tl.constexpr, output, source, head_dim: tl.constexpr):
    """A gate's recurrent matrix from entries `source` to entries `output`, index tensors that broadcast to a tile."""
    at = ((head * 4 + gate) * head_dim + output) * head_dim + source
    return tl.load(weights + at, mask=(output < head_dim) & (source < head_dim), other=0.0)


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
    length: tl.constexpr,
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
    entry = tl.arange(0, padded)
    source, output = entry[:, None], entry[None, :]
    unit = head * head_dim + output
    mask = (row < batch) & (output < head_dim)
    known = output < head_dim
    b_i = tl.load(bias + unit, mask=known, other=0.0)
    b_f = tl.load(bias + width + unit, mask=known, other=0.0)
    b_z = tl.load(bias + 2 * width + unit, mask=known, other=0.0)
    b_o = tl.load(bias + 3 * width + unit, mask=known, other=0.0)
    if resident:
        r_i = _matrix(weights, head, 0, output, source, head_dim)
        r_f = _matrix(weights, head, 1, output, source, head_dim)
        r_z = _matrix(weights, head, 2, output, source, head_dim)
        r_o = _matrix(weights, head, 3, output, source, head_dim)
    memory_at = memory + row * (length + 1) * 3 * width + unit
    gates_at = row * length * 4 * width + unit
    hidden_at = hidden + row * length * width + unit
    h = tl.load(first_hidden + row * width + unit, mask=mask, other=0.0)
    c = tl.load(memory_at, mask=mask, other=0.0)
    n = tl.load(memory_at + width, mask=mask, other=0.0)
    m = tl.load(memory_at + 2 * width, mask=mask, other=0.0)
    for step in range(length):
        x_i = tl.load(inputs + gates_at, mask=mask, other=0.0).to(tl.float32) + b_i
        x_f = tl.load(inputs + gates_at + width, mask=mask, other=0.0).to(tl.float32) + b_f
        x_z = tl.load(inputs + gates_at + 2 * width, mask=mask, other=0.0).to(tl.float32) + b_z
        x_o = tl.load(inputs + gates_at + 3 * width, mask=mask, other=0.0).to(tl.float32) + b_o
        if has_starts:
            start = tl.load(starts + row * length + step, mask=row < batch, other=0) != 0
            h = tl.where(start, 0.0, h)
            c = tl.where(start, 0.0, c)
            n = tl.where(start, 0.0, n)
            m = tl.where(start, 0.0, m)
        factor = h.to(weights.dtype.element_ty)
        if resident:
            i = x_i + tl.dot(factor, r_i, input_precision=precision)
            f = x_f + tl.dot(factor, r_f, input_precision=precision)
            z = x_z + tl.dot(factor, r_z, input_precision=precision)
            o = x_o + tl.dot(factor, r_o, input_precision=precision)
        else:
            i = x_i + tl.dot(factor, _matrix(weights, head, 0, output, source, head_dim), input_precision=precision)
            f = x_f + tl.dot(factor, _matrix(weights, head, 1, output, source, head_dim), input_precision=precision)
            z = x_z + tl.dot(factor, _matrix(weights, head, 2, output, source, head_dim), input_precision=precision)
            o = x_o + tl.dot(factor, _matrix(weights, head, 3, output, source, head_dim), input_precision=precision)
        kept = m + _log_sigmoid(f)
        m = tl.where(n == 0.0, i, tl.maximum(i, kept))
        iota = tl.exp(i - m)
        phi = tl.exp(tl.minimum(kept - m, 0.0))
        c = phi * c + iota * _tanh(z)
        n = phi * n + iota
        h = tl.sigmoid(o) * c / n
        tl.store(gates + gates_at, i, mask=mask)
        tl.store(gates + gates_at + width, f, mask=mask)
        tl.store(gates + gates_at + 2 * width, z, mask=mask)
        tl.store(gates + gates_at + 3 * width, o, mask=mask)
        memory_at += 3 * width
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
    length: tl.constexpr,
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
    entry = tl.arange(0, padded)
    output, source = entry[:, None], entry[None, :]
    unit = head * head_dim + source
    mask = (row < batch) & (source < head_dim)
    if resident:
        r_i = _matrix(weights, head, 0, output, source, head_dim)
        r_f = _matrix(weights, head, 1, output, source, head_dim)
        r_z = _matrix(weights, head, 2, output, source, head_dim)
        r_o = _matrix(weights, head, 3, output, source, head_dim)
    memory_at = memory + (row * (length + 1) + length) * 3 * width + unit
    gates_at = (row * length + length) * 4 * width + unit
    hidden_at = d_hidden + (row * length + length) * width + unit
    state_at = d_state + row * width + unit
    state_step = batch * width
    c = tl.load(memory_at, mask=mask, other=0.0)
    n = tl.load(memory_at + width, mask=mask, other=1.0)
    m = tl.load(memory_at + 2 * width, mask=mask, other=0.0)
    d_h = tl.load(state_at, mask=mask, other=0.0)
    d_c = tl.load(state_at + state_step, mask=mask, other=0.0)
    d_n = tl.load(state_at + 2 * state_step, mask=mask, other=0.0)
    surplus = tl.load(state_at + 3 * state_step, mask=mask, other=0.0) - c * d_c - n * d_n
    for back in range(length):
        memory_at -= 3 * width
        gates_at -= 4 * width
        hidden_at -= width
        d_h += tl.load(hidden_at, mask=mask, other=0.0)
        i = tl.load(gates + gates_at, mask=mask, other=0.0)
        f = tl.load(gates + gates_at + width, mask=mask, other=0.0)
        z = tl.load(gates + gates_at + 2 * width, mask=mask, other=0.0)
        o = tl.load(gates + gates_at + 3 * width, mask=mask, other=0.0)
        c_stored = tl.load(memory_at, mask=mask, other=0.0)
        n_stored = tl.load(memory_at + width, mask=mask, other=1.0)
        m_stored = tl.load(memory_at + 2 * width, mask=mask, other=0.0)
        c_before, n_before, m_before = c_stored, n_stored, m_stored
        if has_starts:
            start = tl.load(starts + row * length + (length - 1 - back), mask=row < batch, other=0) != 0
            c_before = tl.where(start, 0.0, c_before)
            n_before = tl.where(start, 0.0, n_before)
            m_before = tl.where(start, 0.0, m_before)
        iota = tl.exp(i - m)
        phi = tl.exp(tl.minimum(m_before + _log_sigmoid(f) - m, 0.0))
        value = _tanh(z)
        sigma = tl.sigmoid(o)
        d_share = d_h * sigma / n
        d_c += d_share
        d_n -= d_share * c / n
        to_input = tl.where(i == m, surplus, 0.0)
        surplus -= to_input
        g_i = iota * (d_c * value + d_n) + to_input
        g_f = tl.sigmoid(-f) * (phi * (d_c * c_before + d_n * n_before) + surplus)
        g_z = iota * d_c * (1 - value * value)
        g_o = d_h * sigma * (1 - sigma) * c / n
        tl.store(d_gates + gates_at, g_i, mask=mask)
        tl.store(d_gates + gates_at + width, g_f, mask=mask)
        tl.store(d_gates + gates_at + 2 * width, g_z, mask=mask)
        tl.store(d_gates + gates_at + 3 * width, g_o, mask=mask)
        d_c *= phi
        d_n *= phi
        kind = weights.dtype.element_ty
        if resident:
            d_h = tl.dot(g_i.to(kind), r_i, input_precision=precision)
            d_h += tl.dot(g_f.to(kind), r_f, input_precision=precision)
            d_h += tl.dot(g_z.to(kind), r_z, input_precision=precision)
            d_h += tl.dot(g_o.to(kind), r_o, input_precision=precision)
        else:
            d_h = tl.dot(
                g_i.to(kind), _matrix(weights, head, 0, output, source, head_dim), input_precision=precision
            )
            d_h += tl.dot(
                g_f.to(kind), _matrix(weights, head, 1, output, source, head_dim), input_precision=precision
            )
            d_h += tl.dot(
                g_z.to(kind), _matrix(weights, head, 2, output, source, head_dim), input_precision=precision
            )
            d_h += tl.dot(
                g_o.to(kind), _matrix(weights, head, 3, output, source, head_dim), input_precision=precision
            )
        if has_starts:
            d_h = tl.where(start, 0.0, d_h)
            d_c = tl.where(start, 0.0, d_c)
            d_n = tl.where(start, 0.0, d_n)
        c, n, m = c_stored, n_stored, m_stored
    tl.store(state_at, d_h, mask=mask)
    tl.store(state_at + state_step, d_c, mask=mask)
    tl.store(state_at + 2 * state_step, d_n, mask=mask)
    tl.store(state_at + 3 * state_step, c * d_c + n * d_n + surplus, mask=mask)
