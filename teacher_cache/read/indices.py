"""Row indices: integers, a range or a boolean mask, with the meaning they have in NumPy."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

RowIndices = Sequence[int] | range | NDArray[np.integer[Any]] | NDArray[np.bool_]


def row_number(index: SupportsIndex) -> int:
    """The number of one row; raises `TypeError` for anything but one integer."""
    if isinstance(index, bool | np.bool_):
        raise TypeError("cache[…] takes one row number, not a truth value; use cache.rows(mask)")
    try:
        return operator.index(index)
    except TypeError:
        found = type(index).__name__
        raise TypeError(f"cache[…] takes one row number, not a {found}; use cache.rows(…) for several rows") from None


def row_numbers(indices: RowIndices, count: int) -> NDArray[np.int64]:
    """Row numbers (n,) of a cache of `count` rows; negative ones count from the end, a mask (count,) picks its rows.

    Raises `IndexError` outside the cache and for a mask of another length, `TypeError` for anything but integers and
    truth values.
    """
    given = np.asarray(indices)
    if given.ndim != 1:
        raise IndexError(f"row indices must be one-dimensional, not of shape {given.shape}")
    if given.dtype == np.bool_:
        if len(given) != count:
            raise IndexError(f"a mask of {len(given)} rows for a cache of {count}; give one truth value per row")
        return np.flatnonzero(given)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"row indices must be integers or a boolean mask, not {given.dtype}")
    index = given.astype(np.int64)
    index = np.where(index < 0, index + count, index)
    if len(index) and (index.min() < 0 or index.max() >= count):
        raise IndexError(f"row out of range: the cache has {count} rows")
    return index
