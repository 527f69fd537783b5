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

from student.model.kernels.chunks import (
    LONGEST_CHUNK,
    NOTHING,
    Documents,
    Memory,
    border_memories,
    documents_of,
    in_chunks,
)
from student.model.transplant.sums.weighted import Weighted


class HeadInputs(NamedTuple):
    """What the recurrence reads."""

    q: Tensor
    """(B, H, T, F), not negative"""
    k: Tensor
    """(B, H, T, F), not negative"""
    v: Tensor
    """(B, K, T, D) of K heads that divide H"""
    i: Tensor
    """Logarithm of the input gate, (B, H, T), float32 or wider."""
    log_forget: Tensor
    """Logarithm of the forget gate, (B, H, T), float32 or wider."""

    def values_of_each_head(self) -> Tensor:
        """(B, H, T, D)"""
        return self.v.repeat_interleave(self.q.shape[1] // self.v.shape[1], dim=1)


def recurrence(
    inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None, longest_chunk: int = LONGEST_CHUNK
) -> tuple[Weighted, Memory]:
    """Weighted sums over all positions up to each one of its document, and the memory after the last position.

    Where `document_start` (B, T) is true the memory before is dropped. Products are taken in the type of `q`, sums
    in float32 or wider.
    """
    length = inputs.q.shape[2]
    chunks = math.ceil(length / longest_chunk)
    q, k, v, log_forget = (
        in_chunks(x, chunks, 0.0) for x in (inputs.q, inputs.k, inputs.values_of_each_head(), inputs.log_forget)
    )
    # Positions that fill up the last chunk add nothing and forget nothing.
    i, log_forget = in_chunks(inputs.i, chunks, NOTHING), log_forget.cumsum(-1)
    documents = None if document_start is None else documents_of(in_chunks(document_start[:, None], chunks, 0.0))
    borders = border_memories(k, v, i, log_forget, documents, memory)
    before, after = (Memory(*(x[:, :, where] for x in borders)) for where in (slice(chunks), chunks))
    sums = _sums(HeadInputs(q, k, v, i, log_forget), documents, before)
    return Weighted(*(x.flatten(2, 3)[:, :, :length] for x in sums)), after


def chunk_on_gpu(q: Tensor) -> int:
    """Positions of a chunk for the kernels of `recurrence_triton`: as many as fit on a multiprocessor."""
    return 64 if q.element_size() == 2 and q.shape[3] <= 256 else 32


def _sums(inputs: HeadInputs, documents: Documents | None, before: Memory) -> Weighted:
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
