"""Means by cache over the last steps."""

import pytest

from student.run.by_cache import LAST_STEPS, TRAINED_CACHE_WORDS, cells_by_cache, means_by_cache
from student.run.files import TrainedCache


def line(tokens: int, kl: float | None) -> dict[str, object]:
    first = {"rows": 2, "tokens": tokens, "cross_entropy": 5.0, "kl": kl, "frobenius": None}
    return {"by_cache": [first, {"rows": 1, "tokens": 4, "cross_entropy": 1.0, "kl": 0.5, "frobenius": 0.25}]}


def test_means_are_weighed_and_leave_out_steps_without_a_term() -> None:
    first, second = means_by_cache([line(10, 1.0), line(30, 2.0), line(0, None)])
    assert first == {"cross_entropy": 5.0, "kl": pytest.approx(1.75)}
    assert second == {"cross_entropy": 1.0, "kl": 0.5, "frobenius": 0.25}


def test_only_the_last_steps_count_and_a_single_cache_has_none() -> None:
    assert means_by_cache([line(10, 9.0)] + [line(10, 1.0)] * LAST_STEPS)[0]["kl"] == pytest.approx(1.0)
    assert means_by_cache([{"kl": 1.0}, {"transfer": 2.0}]) == []


def test_cells_say_what_was_read_and_what_it_came_to() -> None:
    cache = TrainedCache(
        path="caches/a", fingerprint="f", teacher="t", rows=1200, share=0.7, passes=1.5, has_states=False
    )
    (cells,) = cells_by_cache([cache], [{"cross_entropy": 2.0, "kl": 1.0}])
    assert dict(zip(TRAINED_CACHE_WORDS, cells, strict=True)) == {
        "rows": "1,200", "share of rows": "70.00%", "passes": "1.50", "cross-entropy": "2.0000", "KL at T": "1.0000",
        "F": "–",
    }  # fmt: skip
    assert cells_by_cache([cache], [])[0][-1] == "–"
