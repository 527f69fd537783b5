"""The mLSTM recurrence over a whole sequence, chunk by chunk: time linear in its length, state in and out.

Per head (Beck et al. 2024), with log f̃ = log σ(f), k scaled by 1/√d and the stabiliser m:

    m_t = max(log f̃ + m_{t-1}, i)      f' = exp(log f̃ + m_{t-1} - m_t)      i' = exp(i - m_t)
    C_t = f' C_{t-1} + i' k v^T         n_t = f' n_{t-1} + i' k        h_t = C_t^T q / (max(|n_t·q|, exp(-m_t)) + ε)

Within a chunk this is attention under a matrix of decays; from chunk to chunk it goes through the states at chunk
borders. Those are one weighted sum each of what all chunks before it add, so nothing runs step by step. Symbols: N
rows times heads, C chunks of L positions, D entries a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LONGEST_CHUNK = 64
EPSILON = 1e-6
"""xlstm's ε. It weighs against a denominator scaled by exp(-m), so equal results need the same m."""
NOTHING = -1e30
"""Logarithm of a weight that is none. Finite: differences of two of them stay numbers."""

MemoryState = tuple[Tensor, Tensor, Tensor]
"""As xlstm's `step` keeps it: C (B, H, D, D), n (B, H, D, 1), m (B, H, 1, 1)."""


class Heads(NamedTuple):
    """What the recurrence reads, split into heads."""

    q: Tensor
    """(B, H, T, D), as k and v"""
    k: Tensor
    v: Tensor
    i: Tensor
    """Logarithm of the input gate (B, H, T)"""
    f: Tensor
    """Pre-activation of the forget gate (B, H, T)"""


def mlstm_sequence(
    cell: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: MemoryState | None = None,
    document_start: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, MemoryState]:
    pass
