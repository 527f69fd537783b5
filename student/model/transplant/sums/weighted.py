"""Sums of weighted values, kept with the logarithm of their scale so that two of them can be added."""

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-20
"""Below it a position sees nothing: its output is zero, not zero over zero."""


class Weighted(NamedTuple):
    """Σ w_j v_j and Σ w_j over what each position sees, both divided by exp(log_scale)."""

    values: Tensor
    """(B, H, T, D), float32 or wider"""
    weight: Tensor
    """(B, H, T)"""
    log_scale: Tensor
    """(B, H, T)"""


def added(one: Weighted, other: Weighted) -> Weighted:
    """Both sums as one, as if all their weights came from one softmax."""
    scale = torch.maximum(one.log_scale, other.log_scale)
    first, second = torch.exp(one.log_scale - scale), torch.exp(other.log_scale - scale)
    values = one.values * first[..., None] + other.values * second[..., None]
    return Weighted(values, one.weight * first + other.weight * second, scale)


def mean(sums: Weighted) -> Tensor:
    """The weighted mean of the values, (B, H, T, D); zero where nothing is seen."""
    return sums.values / sums.weight.clamp(min=SMALLEST_WEIGHT)[..., None]
