"""The mLSTM recurrence chunk by chunk in plain torch, on any device.

Per head (Beck et al. 2024), with k scaled by 1/√D and the stabiliser m:

    m_t = max(log σ(f) + m_{t-1}, i)   φ = exp(log σ(f) + m_{t-1} - m_t)   ι = exp(i - m_t)
    C_t = φ C_{t-1} + ι k v^T          n_t = φ n_{t-1} + ι k               h_t = C_t^T q / (max(|n_t·q|, exp(-m_t)) + ε)

Inside a chunk this is attention with decays; the memory at a chunk's border is a weighted sum of what each chunk
before it adds. Both are matrix products with weights known beforehand, so nothing runs step by step. The sums at the
borders alone are quadratic in the number of chunks, and about as much work as the rest at 16,000 positions. Document
starts are masks over these weights: they cost no precision, which adding up a very negative forget gate would.

Symbols: B rows, H heads, C chunks of L positions, D entries per head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LONGEST_CHUNK = 64
EPSILON = 1e-6
"""xlstm's ε. It meets a denominator scaled by exp(-m), so results are equal to it only with the same m."""
LARGEST_EXPONENT = 80.0
"""Where exp(-m) would overflow, its derivative would be infinite times the zero that it divides down to, not a number.
Beyond this the output is zero to float32's rounding either way."""
NOTHING = -1e30
"""Logarithm of a weight of 0; finite, so that differences of two are numbers."""


class HeadInputs(NamedTuple):
    """What the recurrence reads."""

    q: Tensor
    """(B, H, T, D)"""
    k: Tensor
    """(B, H, T, D)"""
    v: Tensor
    """(B, H, T, D)"""
    i: Tensor
    """Logarithm of the input gate, (B, H, T)."""
    f: Tensor
    """Pre-activation of the forget gate, (B, H, T)."""


class Memory(NamedTuple):
    """The state between two positions."""

    c: Tensor
    """(B, H, D, D)"""
    n: Tensor
    """(B, H, D)"""
    m: Tensor
    """(B, H)"""


class _Documents(NamedTuple):
    """Which positions see what where documents start inside the sequence."""

    together: Tensor
    """Whether position t and position j of a chunk are of one document, (B, 1, C, L, L)."""
    first: Tensor
    """Whether a position is of the document that the chunk begins in the middle of, (B, 1, C, L)."""
    last: Tensor
    """Whether a position is of the document that the chunk ends in, (B, 1, C, L)."""


def run(inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None) -> tuple[Tensor, Memory]:
    """Outputs (B, H, T, D) before the norm, and the memory after the last position."""
    length = inputs.q.shape[2]
    chunks = math.ceil(length / LONGEST_CHUNK)
    q, k, v = (_in_chunks(x, chunks, 0.0) for x in (inputs.q, inputs.k, inputs.v))
    # Positions that fill up the last chunk add nothing and forget nothing.
    i = _in_chunks(inputs.i, chunks, NOTHING)
    log_forget = _in_chunks(functional.logsigmoid(inputs.f), chunks, 0.0).cumsum(-1)
    documents = None if document_start is None else _documents(_in_chunks(document_start[:, None], chunks, 0.0))
    borders = _memories(k, v, i, log_forget, documents, memory)
    before, after = (Memory(*(x[:, :, where] for x in borders)) for where in (slice(chunks), chunks))
    outputs = _outputs(q, k, v, i, log_forget, documents, before)
    return outputs.flatten(2, 3)[:, :, :length], after


def _in_chunks(x: Tensor, chunks: int, fill: float) -> Tensor:
    """(B, H, T, ...) to (B, H, C, L, ...), filled up at the end."""
    size = math.ceil(x.shape[2] / chunks)
    behind = [0, 0] * (x.dim() - 3) + [0, chunks * size - x.shape[2]]
    filled = functional.pad(x, behind, value=fill)
    return filled.reshape(*x.shape[:2], chunks, size, *x.shape[3:]).contiguous()


def _documents(starts: Tensor) -> _Documents:
    """Masks from starts (B, 1, C, L)."""
    number = starts.long().cumsum(-1)
    together = number[..., :, None] == number[..., None, :]
    return _Documents(together, number == 0, number == number[..., -1:])


def _memories(
    k: Tensor, v: Tensor, i: Tensor, log_forget: Tensor, documents: _Documents | None, memory: Memory | None
) -> Memory:
    """The memory in front of every chunk and behind the last, (B, H, C + 1, ...)."""
    log_kept = log_forget[..., -1]
    log_added = log_kept[..., None] - log_forget + i
    if documents is not None:
        log_added = log_added.masked_fill(~documents.last, NOTHING)
        log_kept = log_kept.masked_fill(~documents.first[..., -1], NOTHING)
    m_added = log_added.amax(-1)
    k = k * torch.exp(log_added - m_added[..., None] - math.log(k.shape[-1]) / 2)[..., None]
    c, n = k.transpose(-1, -2) @ v, k.sum(-2)
    m_before = torch.full_like(m_added[..., 0], NOTHING) if memory is None else memory.m
    log_weights = _log_spans(log_kept) + torch.cat([m_before[..., None], m_added], dim=-1)[..., None, :]
    m = log_weights.amax(-1)
    weights = torch.exp(log_weights - m[..., None])
    if memory is None:
        weights = weights[..., 1:]
    else:
        c, n = torch.cat([memory.c[:, :, None], c], dim=2), torch.cat([memory.n[:, :, None], n], dim=2)
    return Memory((weights @ c.flatten(-2)).view(*m.shape, *c.shape[-2:]), weights @ n, m)


def _log_spans(log_kept: Tensor) -> Tensor:
    """How much of what is there at border s is left at border t, as a logarithm (B, H, C + 1, C + 1), from (B, H, C).

    Every span is added up by itself: differences of running sums would carry the rounding of all that went before.
    """
    chunks = log_kept.shape[-1]
    behind = torch.ones(chunks, chunks + 1, dtype=torch.bool, device=log_kept.device).tril()
    spans = functional.pad(log_kept[..., None].masked_fill(~behind, 0).cumsum(-2), (0, 0, 1, 0))
    later = torch.ones(chunks + 1, chunks + 1, dtype=torch.bool, device=log_kept.device).triu(1)
    return spans.masked_fill(later, NOTHING)


def _outputs(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_forget: Tensor, documents: _Documents | None, before: Memory
) -> Tensor:
    """(B, H, C, L, D)"""
    size = q.shape[-2]
    sees = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    log_decay = log_forget[..., :, None] + (i - log_forget)[..., None, :]
    log_kept = log_forget + before.m[..., None]
    if documents is not None:
        sees = sees & documents.together
        log_kept = log_kept.masked_fill(~documents.first, NOTHING)
    log_decay = log_decay.masked_fill(~sees, NOTHING)
    m = torch.maximum(log_decay.amax(-1), log_kept)
    decay = torch.exp(log_decay - (m + math.log(k.shape[-1]) / 2)[..., None])
    attention = (q @ k.transpose(-1, -2)) * decay
    q = q * torch.exp(log_kept - m)[..., None]
    numerator = attention @ v + q @ before.c
    n_q = attention.sum(-1) + (q @ before.n[..., None]).squeeze(-1)
    floor = torch.exp((-m).clamp(max=LARGEST_EXPONENT))
    return numerator / (torch.maximum(n_q.abs(), floor) + EPSILON)[..., None]
