"""What the chunkwise recurrences of mLSTM share: sequences in chunks, documents as masks, the memory at the borders.

Symbols: B rows, H heads, C chunks of L positions, F entries of a key, D entries of a value.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LONGEST_CHUNK = 64
NOTHING = -1e30
"""Logarithm of a weight of 0; finite, so that differences of two are numbers."""


class Memory(NamedTuple):
    """The state between two positions; zeros are an empty one."""

    c: Tensor
    """(B, H, F, D)"""
    n: Tensor
    """(B, H, F)"""
    m: Tensor
    """(B, H)"""


class Documents(NamedTuple):
    """Which positions see what where documents start inside the sequence."""

    together: Tensor
    """Whether position t and position j of a chunk are of one document, (B, 1, C, L, L)."""
    first: Tensor
    """Whether a position is of the document that the chunk begins in the middle of, (B, 1, C, L)."""
    last: Tensor
    """Whether a position is of the document that the chunk ends in, (B, 1, C, L)."""


def in_chunks(x: Tensor, chunks: int, fill: float) -> Tensor:
    """(B, H, T, ...) to (B, H, C, L, ...), filled up at the end."""
    size = math.ceil(x.shape[2] / chunks)
    behind = [0, 0] * (x.dim() - 3) + [0, chunks * size - x.shape[2]]
    filled = functional.pad(x, behind, value=fill)
    return filled.reshape(*x.shape[:2], chunks, size, *x.shape[3:]).contiguous()


def documents_of(starts: Tensor) -> Documents:
    """Masks from starts (B, 1, C, L)."""
    number = starts.long().cumsum(-1)
    together = number[..., :, None] == number[..., None, :]
    return Documents(together, number == 0, number == number[..., -1:])


def border_memories(
    k: Tensor,
    v: Tensor,
    i: Tensor,
    log_forget: Tensor,
    documents: Documents | None,
    memory: Memory | None,
    log_scale: float = 0.0,
) -> Memory:
    """The memory in front of every chunk and behind the last, (B, H, C + 1, ...).

    From keys, which count exp(`log_scale`) times, values and gates in chunks, with `log_forget` added up from each
    chunk's beginning. Products are taken in the type of `k`, sums over chunks in that of `i`.
    """
    log_kept = log_forget[..., -1]
    log_added = log_kept[..., None] - log_forget + i
    if documents is not None:
        log_added = log_added.masked_fill(~documents.last, NOTHING)
        log_kept = log_kept.masked_fill(~documents.first[..., -1], NOTHING)
    m_added = log_added.amax(-1)
    k = k * torch.exp(log_added - m_added[..., None] + log_scale)[..., None].to(k.dtype)
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
