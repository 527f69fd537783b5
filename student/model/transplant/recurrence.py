"""The mLSTM recurrence over features of queries and keys, chunk by chunk in plain torch, on any device.

Per head, with the stabiliser m, as in Beck et al. 2024 (equations 18 to 26 of the paper):

    m_t = max(log f_t + m_{t-1}, i_t)   φ = exp(log f_t + m_{t-1} - m_t)   ι = exp(i_t - m_t)
    C_t = φ C_{t-1} + ι k v^T           n_t = φ n_{t-1} + ι k              Σwv = C_t^T q   Σw = n_t·q

with log f = log σ(forget gate). Features are not negative, so n_t·q is a sum of weights, and the output Σwv / Σw a
mean. It is left undivided here, for other sums to be added. `naive.recurrence` takes one step after the other.

Symbols: B rows, H heads, C chunks of L positions, F features, D entries of a value.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from student.model.transplant.weighted import NOTHING, Weighted

LONGEST_CHUNK = 64


class HeadInputs(NamedTuple):
    """What the recurrence reads."""

    q: Tensor
    """(B, H, T, F), not negative"""
    k: Tensor
    """(B, H, T, F), not negative"""
    v: Tensor
    """(B, H, T, D)"""
    i: Tensor
    """Logarithm of the input gate, (B, H, T), float32 or wider."""
    log_forget: Tensor
    """Logarithm of the forget gate, (B, H, T), float32 or wider."""


class Memory(NamedTuple):
    """The state between two positions, float32 or wider; zeros are an empty one."""

    c: Tensor
    """(B, H, F, D)"""
    n: Tensor
    """(B, H, F)"""
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


def recurrence(
    inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None, longest_chunk: int = LONGEST_CHUNK
) -> tuple[Weighted, Memory]:
    """Weighted sums over all positions up to each one of its document, and the memory after the last position.

    Where `document_start` (B, T) is true the memory before is dropped. Products are taken in the type of `q`, sums
    in float32 or wider.
    """
    length = inputs.q.shape[2]
    chunks = math.ceil(length / longest_chunk)
    q, k, v, log_forget = (_in_chunks(x, chunks, 0.0) for x in (inputs.q, inputs.k, inputs.v, inputs.log_forget))
    # Positions that fill up the last chunk add nothing and forget nothing.
    i, log_forget = _in_chunks(inputs.i, chunks, NOTHING), log_forget.cumsum(-1)
    documents = None if document_start is None else _documents(_in_chunks(document_start[:, None], chunks, 0.0))
    borders = _memories(k, v, i, log_forget, documents, memory)
    before, after = (Memory(*(x[:, :, where] for x in borders)) for where in (slice(chunks), chunks))
    sums = _sums(HeadInputs(q, k, v, i, log_forget), documents, before)
    return Weighted(*(x.flatten(2, 3)[:, :, :length] for x in sums)), after


def _in_chunks(x: Tensor, chunks: int, fill: float) -> Tensor:
    """(B, H, T, ...) to (B, H, C, L, ...), filled up at the end."""
    size = math.ceil(x.shape[2] / chunks)
    behind = [0, 0] * (x.dim() - 3) + [0, chunks * size - x.shape[2]]
    filled = functional.pad(x, behind, value=fill)
    return filled.reshape(*x.shape[:2], chunks, size, *x.shape[3:])


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
    k = k * torch.exp(log_added - m_added[..., None])[..., None].to(k.dtype)
    c, n = (k.transpose(-1, -2) @ v).to(i.dtype), k.sum(-2, dtype=i.dtype)
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


def _sums(inputs: HeadInputs, documents: _Documents | None, before: Memory) -> Weighted:
    """Sums (B, H, C, L, ...) from inputs in chunks, whose `log_forget` is added up from the chunk's beginning."""
    q, k, v, i, log_forget = inputs
    size = q.shape[-2]
    sees = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    log_kept = log_forget + before.m[..., None]
    if documents is not None:
        sees = sees & documents.together
        log_kept = log_kept.masked_fill(~documents.first, NOTHING)
    log_decay = (log_forget[..., :, None] + (i - log_forget)[..., None, :]).masked_fill(~sees, NOTHING)
    m = torch.maximum(log_decay.amax(-1), log_kept)
    weights = (q @ k.transpose(-1, -2)) * torch.exp(log_decay - m[..., None]).to(q.dtype)
    q = q * torch.exp(log_kept - m)[..., None].to(q.dtype)
    values = (weights @ v).to(m.dtype) + (q @ before.c.to(q.dtype)).to(m.dtype)
    weight = weights.sum(-1, dtype=m.dtype) + (q.to(m.dtype) @ before.n[..., None]).squeeze(-1)
    return Weighted(values, weight, m)
