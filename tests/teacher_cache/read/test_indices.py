"""Rows are picked as NumPy picks them, and what cannot be meant is an error of its kind."""

import os
from pathlib import Path

import numpy as np
import pytest

from teacher_cache import open_cache
from teacher_cache.read.indices import row_number, row_numbers

COUNT = 10


def test_integers_ranges_and_masks_pick_rows() -> None:
    assert row_numbers([3, -1, 0], COUNT).tolist() == [3, 9, 0]
    assert row_numbers(range(2, 5), COUNT).tolist() == [2, 3, 4]
    assert row_numbers(np.array([7], np.uint8), COUNT).tolist() == [7]
    assert row_numbers([], COUNT).tolist() == []
    mask = np.zeros(COUNT, bool)
    mask[[4, 8]] = True
    assert row_numbers(mask, COUNT).tolist() == [4, 8]
    assert row_numbers(mask.tolist(), COUNT).tolist() == [4, 8]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ([True, False], IndexError, "a mask of 2 rows for a cache of 10"),
        ([1.5], TypeError, "must be integers or a boolean mask, not float64"),
        (["1"], TypeError, "must be integers or a boolean mask, not <U1"),
        ([[1, 2]], IndexError, r"must be one-dimensional, not of shape \(1, 2\)"),
        (3, IndexError, r"must be one-dimensional, not of shape \(\)"),
        ([10], IndexError, "row out of range: the cache has 10 rows"),
        ([-11], IndexError, "row out of range"),
    ],
)
def test_what_picks_no_rows_is_an_error(wrong: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        row_numbers(wrong, COUNT)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [[1, 2], (1, 2), np.array([1, 2]), 1.0, "1", True, None])
def test_one_row_is_one_integer(wrong: object, synthetic_cache: Path) -> None:
    assert row_number(np.int32(3)) == 3
    with pytest.raises(TypeError, match=r"cache\[…\] takes one row number"):
        open_cache(synthetic_cache)[wrong]  # type: ignore[index]


def test_a_mask_reads_its_rows(synthetic_cache: Path) -> None:
    cache = open_cache(synthetic_cache)
    mask = np.arange(len(cache)) % 3 == 1
    assert np.array_equal(cache.rows(mask).tokens, cache.rows(np.flatnonzero(mask)).tokens)


def test_a_cache_opened_by_a_relative_path_outlives_a_change_of_folder(
    synthetic_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(synthetic_cache.parent)
    cache = open_cache(synthetic_cache.name)
    assert str(cache.path) == synthetic_cache.name
    os.chdir(tmp_path)
    assert np.array_equal(cache.rows([0]).tokens, open_cache(synthetic_cache).rows([0]).tokens)
    assert cache.frozen_weights.is_file()
