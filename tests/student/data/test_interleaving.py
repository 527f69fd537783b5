"""Which cache a row of training comes from: shares are kept to the row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.data.interleaving import ALONE, PERIOD, Interleaving, rows_per_period

shares = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8)


def caches_of(interleaving: Interleaving, rows: int) -> np.ndarray:
    """The cache of each of the first rows, by the numbers of rows before."""
    before = np.array([[interleaving.before(c, q) for q in range(rows + 1)] for c in range(len(interleaving.counts))])
    given_by = np.diff(before)
    assert (given_by.sum(axis=0) == 1).all(), "every row comes from one cache"
    assert set(given_by.flat) <= {0, 1}
    return given_by.argmax(axis=0)


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), batch=st.integers(1, 64), data=st.data())
def test_any_thousand_steps_of_four_caches_are_within_a_row_of_their_shares(
    weights: list[float], batch: int, data: st.DataObject
) -> None:
    interleaving = Interleaving(rows_per_period(weights, batch, "abcd"))
    first = data.draw(st.integers(0, 10**6))
    for cache, share in enumerate(np.array(weights) / sum(weights)):
        rows = interleaving.before(cache, (first + PERIOD) * batch) - interleaving.before(cache, first * batch)
        assert abs(rows - share * PERIOD * batch) < 1
        assert rows == interleaving.counts[cache], "the same in any thousand steps"


@given(weights=shares, batch=st.integers(1, 64), row=st.integers(0, 10**7))
def test_up_to_any_row_four_caches_are_within_a_row_and_eight_within_one_and_a_half(
    weights: list[float], batch: int, row: int
) -> None:
    interleaving = Interleaving(rows_per_period(weights, batch, range(8)[: len(weights)]))
    before = [interleaving.before(cache, row) for cache in range(len(weights))]
    assert sum(before) == row
    bound = 1 if len(weights) <= 4 else 1.5
    for found, share in zip(before, interleaving.shares, strict=True):
        assert abs(found - share * row) <= bound + 1e-6


@given(weights=shares)
def test_places_are_the_inverse_of_counting(weights: list[float]) -> None:
    interleaving = Interleaving(rows_per_period(weights, 1, range(8)[: len(weights)]))
    caches = caches_of(interleaving, 300)
    for cache in range(len(weights)):
        (expected,) = np.nonzero(caches == cache)
        assert np.array_equal(interleaving.places(cache, np.arange(len(expected))), expected)


def test_simple_shares_alternate() -> None:
    half = Interleaving(rows_per_period([1, 1], 8, "ab"))
    assert caches_of(half, 6).tolist() == [0, 1, 0, 1, 0, 1] or caches_of(half, 6).tolist() == [1, 0, 1, 0, 1, 0]
    tenth = caches_of(Interleaving(rows_per_period([0.7, 0.3], 8, "ab")), 100).reshape(10, 10)
    assert (tenth.sum(axis=1) == 3).all()


def test_a_single_cache_gives_every_row() -> None:
    assert ALONE.shares == (1.0,)
    assert ALONE.before(0, 12345) == 12345
    assert ALONE.places(0, np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_shares_need_not_sum_to_one_and_thirds_are_rounded_to_whole_rows() -> None:
    assert rows_per_period([7, 3], 4, "ab") == (2800, 1200)
    assert rows_per_period([1 / 3, 1 / 3, 1 / 3], 4, "abc") == (1334, 1333, 1333)


def test_a_share_of_less_than_a_row_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="caches/b: its share of 1e-09 is less than one row of 1,000 steps; raise it"):
        rows_per_period([1, 1e-9], 8, ["caches/a", "caches/b"])
