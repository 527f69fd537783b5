"""Expected calibration error: how far the probability of a first choice is from how often it is right."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15

COUNT, CONFIDENCE, CORRECT = range(3)
"""What is summed in each bin, in order."""


def equal_width_edges(bins: int = BINS) -> NDArray[np.float64]:
    """Edges (bins - 1,) between bins of equal width over [0, 1]."""
    return np.linspace(0, 1, bins + 1)[1:-1]


def equal_mass_edges(confidence: NDArray[np.floating[Any]], bins: int = BINS) -> NDArray[np.float64]:
    """Edges (bins - 1,) between bins that each hold equally many of these confidences (n,), ties aside."""
    edges: NDArray[np.float64] = np.quantile(confidence.astype(np.float64), np.linspace(0, 1, bins + 1)[1:-1])
    return edges


def bin_sums(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    edges: NDArray[np.float64],
    group: NDArray[np.int64] | None = None,
    groups: int = 1,
) -> NDArray[np.float64]:
    """Sums (groups, bins, 3) of 1, confidence (n,) and correct (n,); `group` (n,) is each position's group.

    A confidence that equals an edge belongs to the bin below it.
    """
    bins = len(edges) + 1
    place = np.searchsorted(edges, confidence.astype(np.float64), side="left")
    if group is not None:
        place = place + bins * group
    columns = (np.ones(len(place)), confidence, correct)
    sums = [np.bincount(place, weights=column.astype(np.float64), minlength=groups * bins) for column in columns]
    return np.stack(sums, axis=-1).astype(np.float64).reshape(groups, bins, 3)


def calibration_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """`Σ_bins |Σ correct - Σ confidence| / n`, the mean gap weighted by positions, from sums (..., bins, 3); (...)."""
    gap = np.abs(sums[..., CORRECT] - sums[..., CONFIDENCE]).sum(axis=-1)
    error: NDArray[np.float64] = gap / sums[..., COUNT].sum(axis=-1)
    return error


def perplexity(cross_entropy: float) -> float:
    """exp of a cross-entropy in nats, however large that is."""
    return math.exp(min(cross_entropy, 700.0))
