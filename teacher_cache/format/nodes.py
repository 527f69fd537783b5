"""Log-mass between the temperatures it is stored at (the nodes), by a polynomial in beta = 1/T.

Nodes are equally spaced in beta, so that an exponential at one node is a product of those at earlier nodes. Both ends
of the range are nodes, so targets are exact there, most importantly at T = 1. NumPy only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError

ROUNDING = 1e-9
MOST_NODES = 11
"""More nodes make the polynomial worse again: it magnifies the rounding of what is stored, 0.003 nats at 13."""
FINEST_STEP = 2.0**-13
COARSEST_STEP = 2.0**-9
LOWEST_TEMPERATURE = 0.5
"""Below it no polynomial through so many nodes follows the log-mass: 0.2 nats off at T = 0.25 to 4."""


def nodes_needed(lowest: float, highest: float) -> int:
    """Nodes for a range of temperatures, so that log Z is right to 0.005 nats from T = 1 up.

    Measured on SmolLM2-135M's logits: 5 nodes are off by 0.002 nats at worst from 1 to 2; 11 by 0.004 from 1 to 20, by
    0.002 from 0.5 to 2 and by 0.04 from 0.5 to 4.
    """
    return 5 if 1 / lowest - 1 / highest <= 0.5 + ROUNDING and lowest >= 1 else MOST_NODES


def log_mass_step(count: int) -> float:
    """Log-masses at `count` nodes are stored as multiples of this: log Z is off by at most 0.0022 nats for it.

    The polynomial magnifies rounding by at most 2.2 at 5 nodes, and by 11 at 9.
    """
    return COARSEST_STEP if count <= 5 else FINEST_STEP


def expected_error(nodes: Sequence[float]) -> float:
    """About the largest error of log Z between nodes (nats) for text, from the same measurement."""
    low, high, count = min(nodes), max(nodes), len(nodes)
    if low >= 1:
        return 0.002 if high <= 2 and count >= 5 else (0.005 if count >= 9 else 0.05)
    if low >= LOWEST_TEMPERATURE:
        return (0.002 if high <= 2 else 0.04) if count >= 9 else 0.2
    return 0.7


def node_temperatures(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    """Temperatures of `count` nodes, equally spaced in beta = 1/T, from the highest temperature to the lowest."""
    return tuple(float(1 / beta) for beta in np.linspace(1 / highest, 1 / lowest, count))


def interpolation_weights(nodes: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Weights w (J,) float64 with A(1/T) = log_mass @ w, where A is the polynomial in beta through the J nodes.

    Raises `UserError` when T lies outside the nodes' range.
    """
    return _basis(nodes) @ _powers(_scaled(nodes, temperature), len(nodes))


def derivative_weights(nodes: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Weights w (J,) float64 with dA/dbeta = log_mass @ w at beta = 1/T, which the entropy at T needs."""
    x, exponents = _scaled(nodes, temperature), np.arange(len(nodes))
    powers = np.where(exponents == 0, 0.0, exponents * x ** np.maximum(exponents - 1, 0))
    return _basis(nodes) @ powers / _half_width(nodes)


def _half_width(nodes: Sequence[float]) -> float:
    return (1 / min(nodes) - 1 / max(nodes)) / 2 or 1.0


def _scaled(nodes: Sequence[float], temperature: float) -> float:
    """beta = 1/T, scaled so that the nodes' range is -1 to 1."""
    low, high = min(nodes), max(nodes)
    if not low * (1 - ROUNDING) <= temperature <= high * (1 + ROUNDING):
        raise UserError(f"temperature {temperature:g} is outside the cached range {low:g} to {high:g}")
    return (1 / temperature - (1 / low + 1 / high) / 2) / _half_width(nodes)


def _powers(x: float, count: int) -> NDArray[np.float64]:
    return x ** np.arange(count, dtype=np.float64)


def _basis(nodes: Sequence[float]) -> NDArray[np.float64]:
    """Row j: coefficients, in scaled beta, of the polynomial that is 1 at node j and 0 at all other nodes."""
    vandermonde = np.stack([_powers(_scaled(nodes, t), len(nodes)) for t in nodes], axis=1)
    inverse: NDArray[np.float64] = np.linalg.inv(vandermonde).astype(np.float64)
    return inverse
