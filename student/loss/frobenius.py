"""The Frobenius term (Eq. 37): how far the student's hidden states are from the teacher's, averaged over its layers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FrobeniusNorm = Literal["sequence", "batch"]


@dataclass(frozen=True)
class FrobeniusTerm:
    """How Eq. 37 is taken: the norm of what, over which positions."""

    norm: FrobeniusNorm = "sequence"
    """One norm per sequence, or one over the micro-batch that counts for every sequence."""
    stride: int = 1
    """The cache has the teacher's averaged states at every stride-th position; only those are compared."""
    channel_rms: Tensor | None = None
    """(d,) what each channel's difference is divided by; None leaves it as it is."""


def frobenius_sum(
    hidden_states: Tensor,  # (B, T, d)
    hidden_mean: Tensor | None,  # (B, ceil(T / stride), d), the teacher's
    loss_mask: Tensor,  # (B, T) bool
    term: FrobeniusTerm | None,
) -> Tensor:
    """Eq. 37 as a sum over sequences: `Σ_i ‖H̄_i - h_i‖_F / sqrt(numel_i)` over the valid positions that H̄ has.

    With norm "batch" every sequence of the micro-batch counts with the one norm taken over all of them. A term or a
    mean of None gives 0.
    """
    if hidden_mean is None or term is None:
        return zero_with_gradient(hidden_states)
    dtype = accumulation_dtype(hidden_states)
    mask = loss_mask[:, :: term.stride]
    difference = hidden_mean.to(dtype) - hidden_states[:, :: term.stride].to(dtype)
    if term.channel_rms is not None:
        difference = difference / term.channel_rms.to(dtype)
    difference = difference * mask[..., None]
    width = hidden_states.shape[-1]
    if term.norm == "batch":
        numel = (mask.sum() * width).clamp(min=1)
        whole: Tensor = torch.linalg.vector_norm(difference) / numel.to(dtype).sqrt()
        return whole * mask.any(dim=1).sum()
    numel = (mask.sum(dim=1) * width).clamp(min=1)
    norms: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2)) / numel.to(dtype).sqrt()
    return norms.sum()


def zero_with_gradient(hidden_states: Tensor) -> Tensor:
    """A 0 to add to that has a gradient, so that a micro-batch without valid positions goes backward too."""
    return hidden_states[:0].sum(dtype=accumulation_dtype(hidden_states))


def accumulation_dtype(hidden_states: Tensor) -> torch.dtype:
    """What sums over these states are added up in: float32, or float64 for float64."""
    return torch.promote_types(hidden_states.dtype, torch.float32)
