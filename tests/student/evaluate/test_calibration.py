"""Calibration errors against their definition."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from student.evaluate.calibration import BINS, bin_sums, calibration_error, equal_mass_edges, equal_width_edges


def naive_calibration_error(confidence: NDArray[Any], correct: NDArray[Any], edges: NDArray[Any]) -> float:
    """Bin by bin, as the definition has it: share of positions times the gap of means."""
    bounds = [-np.inf, *edges, np.inf]
    error = 0.0
    for low, high in pairwise(bounds):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_its_definition(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    for edges in (equal_width_edges(), equal_mass_edges(confidence)):
        assert len(edges) == BINS - 1
        found = calibration_error(bin_sums(confidence, correct, edges))
        assert found == pytest.approx(naive_calibration_error(confidence, correct, edges), abs=1e-12)


def test_bins_of_groups_add_up_to_those_of_all() -> None:
    random = np.random.default_rng(0)
    confidence, correct, group = random.random(500), random.random(500) < 0.5, random.integers(0, 7, 500)
    edges = equal_width_edges()
    sums = bin_sums(confidence, correct, edges, group, 7)
    np.testing.assert_allclose(sums.sum(0), bin_sums(confidence, correct, edges)[0])
    np.testing.assert_allclose(sums[3], bin_sums(confidence[group == 3], correct[group == 3], edges)[0])


def test_bins_of_equal_mass_hold_as_many() -> None:
    confidence = np.random.default_rng(1).beta(2, 5, 3000)
    counts = bin_sums(confidence, confidence > 1, equal_mass_edges(confidence))[0, :, 0]
    assert counts.min() >= 199
    assert counts.max() <= 201
