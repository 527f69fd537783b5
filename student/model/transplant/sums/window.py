"""Softmax attention over a window and over the first positions of a document, in bands of plain torch.

Position t sees position j of its own document if t - j < w, or if j is one of its first s. Scores are q·k / √D with
rotary positions inside the document, as in the teacher; sums are left undivided for the recurrence's to be added.
`naive.window` is the twin.

Symbols: B rows, H heads, G of them to each of K key heads, C chunks of L positions, w window, s sinks, D head size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from student.model.kernels.chunks import NOTHING
from student.model.transplant.sums.weighted import Weighted

LONGEST_CHUNK = 64


class WindowInputs(NamedTuple):
    """What window and sinks read; keys and queries carry their rotary positions."""

    q: Tensor
    """(B, H, T, D)"""
    k: Tensor
    """(B, K, w + T, D), of which the first w lie before the sequence"""
    v: Tensor
    """(B, K, w + T, D)"""
    sink_q: Tensor
    """Queries as the sinks see them, (B, H, T, D)."""
    sink_k: Tensor
    """(B, K, C, s, D), from `sinks_by_chunk`"""
    sink_v: Tensor
    """(B, K, C, s, D)"""
    place: Tensor
    """Each position's place in its document, (B, T), from 0."""


def chunk_size(window: int, length: int) -> int:
    """Positions of a chunk. No longer than the window: then a chunk's sinks are those of one document."""
    return min(LONGEST_CHUNK, window, length)


def window(inputs: WindowInputs, size: int, scaling: float) -> Weighted:
    """Weighted sums over the window of `size` positions and the sinks, their logarithms q·k times `scaling`."""
    length, groups = inputs.q.shape[2], inputs.q.shape[1] // inputs.k.shape[1]
    chunk = chunk_size(size, length)
    chunks = math.ceil(length / chunk)
    q, sink_q = (_query_chunks(x, chunks, chunk, groups) for x in (inputs.q, inputs.sink_q))
    k, v = (_bands(x, chunks, chunk, size) for x in (inputs.k, inputs.v))
    near, first = _visible(_place_chunks(inputs.place, chunks, chunk), size, inputs.sink_k.shape[3])
    scores = torch.cat([q @ k.transpose(-1, -2), sink_q @ inputs.sink_k.transpose(-1, -2)], dim=-1)
    seen = torch.cat([near, first], dim=-1).repeat(1, 1, groups, 1)[:, None]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (scores.to(wide) * scaling).masked_fill(~seen, NOTHING)
    scale = scores.amax(-1)
    weights = torch.exp(scores - scale[..., None])
    values = weights.to(v.dtype) @ torch.cat([v, inputs.sink_v], dim=3)
    sums = Weighted(values.to(wide), weights.sum(-1), scale)
    return Weighted(*(_positions(x, groups, length) for x in sums))


def sinks_by_chunk(tokens: Tensor, sinks: Tensor, place: Tensor, chunk: int) -> Tensor:
    """The sinks of the document that each chunk begins in the middle of, (B, K, C, s, D).

    Args:
        tokens: keys or values (B, K, T, D) of the sequence.
        sinks: those of the document before the sequence, (B, K, s, D).
        place: (B, T).
        chunk: positions of a chunk.

    """
    first = torch.arange(0, tokens.shape[2], chunk, device=place.device)
    return picked(torch.cat([sinks.to(tokens.dtype), tokens], dim=2), first - place[:, first], sinks.shape[2])


def picked(tokens: Tensor, first: Tensor, sinks: int) -> Tensor:
    """The first s positions (B, K, N, s, D) of documents that start at `first` (B, N), below 0 before the sequence.

    `tokens` (B, K, s + T, D) begin with the s sinks known before. What lies behind the sequence's end is arbitrary.
    """
    number = torch.arange(sinks, device=first.device)
    index = first[..., None] + number
    index = torch.where(index < 0, number, sinks + index).clamp(max=tokens.shape[2] - 1)
    # A product, not a gather: its gradient adds up in one order and not in 16 bits.
    chosen = functional.one_hot(index.flatten(1), tokens.shape[2]).to(tokens.dtype)
    return torch.unflatten(chosen[:, None] @ tokens, 2, (index.shape[1], sinks))


def _visible(place: Tensor, size: int, sinks: int) -> tuple[Tensor, Tensor]:
    """Which positions of the band and which sinks each position sees, (B, C, L, L + w - 1) and (B, C, L, s)."""
    chunk = place.shape[-1]
    here, band = torch.arange(chunk, device=place.device), torch.arange(chunk + size - 1, device=place.device)
    lag = here[:, None] - band + size - 1
    near = (lag >= 0) & (lag < size) & (lag <= place[..., None])
    return near, place[..., None] - torch.arange(sinks, device=place.device) >= size


def _query_chunks(q: Tensor, chunks: int, chunk: int, groups: int) -> Tensor:
    """(B, H, T, D) to (B, K, C, G·L, D)"""
    q = functional.pad(q, (0, 0, 0, chunks * chunk - q.shape[2]))
    q = torch.unflatten(torch.unflatten(q, 1, (-1, groups)), 3, (chunks, chunk))
    return q.transpose(2, 3).flatten(3, 4)


def _bands(x: Tensor, chunks: int, chunk: int, size: int) -> Tensor:
    """(B, K, w + T, D) to what each chunk may see, (B, K, C, L + w - 1, D)"""
    x = functional.pad(x[:, :, 1:], (0, 0, 0, size + chunks * chunk - x.shape[2]))
    return x.unfold(2, chunk + size - 1, chunk).transpose(-1, -2)


def _place_chunks(place: Tensor, chunks: int, chunk: int) -> Tensor:
    """(B, T) to (B, C, L)"""
    return torch.unflatten(functional.pad(place, (0, chunks * chunk - place.shape[1])), 1, (chunks, chunk))


def _positions(x: Tensor, groups: int, length: int) -> Tensor:
    """(B, K, C, G·L, ...) to (B, H, T, ...)"""
    return torch.unflatten(x, 3, (groups, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :length]
