"""From what a row keeps back to the teacher's distribution at a temperature: plain NumPy, pure functions.

Shapes: values (..., K) float32 logits, largest first, unused places -inf; log_mass (..., J) float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format import derivative_weights, interpolation_weights

Floating = NDArray[np.floating[Any]]


def log_partition(values: Floating, log_mass: Floating, nodes: Sequence[float], temperature: float) -> Floating:
    """`log Z(T)` relative to the largest logit: log of sum_i exp((z_i - z_max)/T) over the whole vocabulary.

    The sum runs over the kept entries and adds the interpolated log-mass of the rest. Returns (...).
    """
    kept = np.exp(_relative(values) / np.float32(temperature)).sum(-1)
    result: Floating = np.logaddexp(np.log(kept), _tail(log_mass, nodes, temperature))
    return result


def probabilities(values: Floating, log_mass: Floating, nodes: Sequence[float], temperature: float) -> Floating:
    """`p_i(T) = exp((z_i - z_max)/T) / Z(T)` of the kept entries, (..., K)."""
    log_z = log_partition(values, log_mass, nodes, temperature)
    return np.exp(_relative(values) / np.float32(temperature) - log_z[..., None])


def retained_mass(values: Floating, log_mass: Floating, nodes: Sequence[float], temperature: float) -> Floating:
    """Probability that falls on the kept entries at T, (...)."""
    return -np.expm1(_tail(log_mass, nodes, temperature) - log_partition(values, log_mass, nodes, temperature))


def entropy(values: Floating, log_mass: Floating, nodes: Sequence[float], temperature: float) -> Floating:
    """The teacher's entropy at T in nats, `log Z - beta dlogZ/dbeta`, with the tail's share from dA/dbeta; (...)."""
    relative = _relative(values)
    weights = probabilities(values, log_mass, nodes, temperature)
    kept_mean = np.where(weights > 0, weights * np.maximum(relative, np.finfo(np.float32).min), 0).sum(-1)
    log_z = log_partition(values, log_mass, nodes, temperature)
    slope = log_mass @ derivative_weights(nodes, temperature).astype(np.float32)
    tail_mean = np.exp(_tail(log_mass, nodes, temperature) - log_z) * slope
    result: Floating = log_z - (kept_mean + tail_mean) / np.float32(temperature)
    return result


def _relative(values: Floating) -> Floating:
    return values - values[..., :1]


def _tail(log_mass: Floating, nodes: Sequence[float], temperature: float) -> Floating:
    result: Floating = log_mass @ interpolation_weights(nodes, temperature).astype(np.float32)
    return result
