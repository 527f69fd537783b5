"""Calibration errors and intervals against naive twins and known truths."""

import numpy as np
import pytest

from student.evaluate.bootstrap import Interval
from student.evaluate.held_out import DocumentNumbers, by_document, scores_of


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
