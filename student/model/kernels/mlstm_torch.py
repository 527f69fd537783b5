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

from student.model.kernels.chunks import (
    LONGEST_CHUNK,
    NOTHING,
    Documents,
    Memory,
    border_memories,
    documents_of,
    in_chunks,
)

EPSILON = 1e-6
"""xlstm's ε. It meets a denominator scaled by exp(-m), so results are equal to it only with the same m."""
LARGEST_EXPONENT = 80.0
"""Where exp(-m) would overflow, its derivative would be infinite times the zero that it divides down to, not a number.
Beyond this the output is zero to float32's rounding either way."""


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


def run(inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None) -> tuple[Tensor, Memory]:
    """Outputs (B, H, T, D) before the norm, and the memory after the last position."""
    length = inputs.q.shape[2]
    chunks = math.ceil(length / LONGEST_CHUNK)
    q, k, v = (in_chunks(x, chunks, 0.0) for x in (inputs.q, inputs.k, inputs.v))
    # Positions that fill up the last chunk add nothing and forget nothing.
    i = in_chunks(inputs.i, chunks, NOTHING)
    log_forget = in_chunks(functional.logsigmoid(inputs.f), chunks, 0.0).cumsum(-1)
    documents = None if document_start is None else documents_of(in_chunks(document_start[:, None], chunks, 0.0))
    borders = border_memories(k, v, i, log_forget, documents, memory, -math.log(k.shape[-1]) / 2)
    before, after = (Memory(*(x[:, :, where] for x in borders)) for where in (slice(chunks), chunks))
    outputs = _outputs(q, k, v, i, log_forget, documents, before)
    return outputs.flatten(2, 3)[:, :, :length], after


def _outputs(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, log_forget: Tensor, documents: Documents | None, before: Memory
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
