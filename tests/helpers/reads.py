"""How often the objects of caches are read, and rows thinned."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from teacher_cache.read import cache as cache_module
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.store.base import Store


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Readings by key from here on, of objects that are read whole."""
    read, read_if_there = Counter[str](), cache_module.read_if_there

    def counting(store: Store, key: str) -> bytes | None:
        read[key] += 1
        return read_if_there(store, key)

    monkeypatch.setattr(cache_module, "read_if_there", counting)
    return read


def note_thinned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the rows that are thinned from here on."""
    thinned, thin = list[int](), Cache.thinned

    def noting(cache: Cache, rows: CachedRows, numbers: NDArray[np.int64]) -> CachedRows:
        thinned.extend(numbers.tolist())
        return thin(cache, rows, numbers)

    monkeypatch.setattr(Cache, "thinned", noting)
    return thinned
