"""Nearest positions weighted by how far back they lie: a convolution whose taps each position chooses.

    Σwv = Σ_j exp(a_tj) v_{t-j}   Σw = Σ_j exp(a_tj),   j = 0 .. K-1, over the positions t - j of t's own document

The logarithms a come from the layer's input alone, so no query meets a key. `naive.nearby` is the twin.
"""

import torch
from torch import Tensor
from torch.nn import functional

from student.model.kernels.chunks import NOTHING
from student.model.transplant.sums.weighted import Weighted


def nearby(log_weights: Tensor, v: Tensor, place: Tensor) -> Weighted:
    """Weighted sums over the K nearest positions.

    Args:
        log_weights: (B, H, T, K), the present position first; float32 or wider.
        v: values (B, H, K - 1 + T, D), of which the first K - 1 lie before the sequence.
        place: each position's place in its document (B, T), from 0; only as many positions back are seen.

    """
    length, lags = log_weights.shape[2:]
    beyond = torch.arange(lags, device=place.device) > place[..., None]
    log_weights = log_weights.masked_fill(beyond[:, None], NOTHING)
    scale = log_weights.amax(-1)
    weights = torch.exp(log_weights - scale[..., None])
    values = torch.zeros((), dtype=weights.dtype, device=v.device)
    for lag in range(lags):
        values = values + weights[..., lag, None] * v[:, :, lags - 1 - lag : lags - 1 - lag + length]
    return Weighted(values, weights.sum(-1), scale)


def with_past(v: Tensor, past: Tensor | None, count: int) -> Tensor:
    """Values (B, H, T, D) behind the last `count` (B, H, count, D) before them, zeros if there were none."""
    return functional.pad(v, (0, 0, count, 0)) if past is None else torch.cat([past.to(v.dtype), v], dim=2)
