"""Calibration errors and intervals against naive twins and known truths."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from student.evaluate.bootstrap import Interval, intervals
from student.evaluate.calibration import BINS, bin_sums, calibration_error, equal_mass_edges, equal_width_edges
from student.evaluate.held_out import DocumentNumbers, by_document, scores_of


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


def a_mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return sums[..., 1:] / sums[..., :1]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """300 samples of 60 documents of unequal length around a mean of 2: about 95 % of the intervals hold it."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        lengths = random.integers(1, 40, 60)
        levels = 2 + 0.5 * random.standard_normal(60)
        sums = np.stack([lengths, lengths * levels], axis=1).astype(float)
        (found,) = intervals(sums, a_mean)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_intervals_are_seeded_and_one_document_has_none() -> None:
    sums = np.random.default_rng(2).random((9, 2)) + 1
    assert intervals(sums, a_mean) == intervals(sums, a_mean)
    assert intervals(sums, a_mean, seed=1) != intervals(sums, a_mean)
    assert intervals(sums[:1], a_mean) == [Interval(float(sums[0, 1] / sums[0, 0]))]


def test_documents_are_resampled_and_not_positions() -> None:
    """Positions of a document that are all alike say as much as one: repeating them changes no interval."""
    levels = np.random.default_rng(3).random(40)

    def found(repeats: int) -> Interval:
        document = np.repeat(np.arange(40), repeats)
        columns = {"document": document, "cross_entropy": levels[document], "confidence": levels[document]}
        scores = scores_of(columns | {"correct": document % 2 == 0})
        assert scores.cross_entropy is not None
        return scores.cross_entropy

    once, often = found(1), found(50)
    assert often.value == pytest.approx(once.value)
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_a_calibration_error_lies_inside_its_interval() -> None:
    """Of perfect calibration, where every resample is worse calibrated than the sample."""
    random = np.random.default_rng(4)
    confidence = random.random(2000)
    columns = {"document": np.arange(2000) // 10, "confidence": confidence, "correct": random.random(2000) < confidence}
    found = scores_of(columns | {"cross_entropy": confidence}).calibration_error
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_documents_go_on_from_row_to_row_and_from_batch_to_batch() -> None:
    start = np.array([[True, False, True], [False, False, False], [False, True, False]])
    numbers = DocumentNumbers()
    assert numbers.of(start[:1]).tolist() == [[1, 1, 2]]
    assert numbers.of(start[1:]).tolist() == [[2, 2, 2], [2, 3, 3]]
    assert DocumentNumbers().of(start[1:]).tolist() == [[0, 0, 0], [0, 1, 1]]


def test_each_document_has_its_own_means() -> None:
    columns = {
        "document": np.array([4, 4, 7]),
        "cross_entropy": np.array([1.0, 2.0, 5.0]),
        "kl": np.array([0.0, 1.0, 2.0]),
        "correct": np.array([True, False, True]),
        "confidence": np.array([0.5, 0.5, 0.5]),
    }
    assert by_document(columns) == [
        {"tokens": 2, "cross_entropy": 1.5, "kl": 0.5, "accuracy": 0.5},
        {"tokens": 1, "cross_entropy": 5.0, "kl": 2.0, "accuracy": 1.0},
    ]
    scores = scores_of(columns, lower_bounds={"kl"})
    assert scores.kl is not None
    assert (scores.kl.value, scores.kl.at_least) == (1.0, True)
    assert scores.cross_entropy is not None
    assert (scores.cross_entropy.value, scores.cross_entropy.at_least) == (pytest.approx(8 / 3), False)
    assert scores.perplexity is not None
    assert scores.perplexity.value == pytest.approx(np.exp(8 / 3))
