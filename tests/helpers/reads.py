"""How often the objects of caches are read."""

from collections import Counter

import pytest

from teacher_cache.read import cache as cache_module
from teacher_cache.store.base import Store


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Readings by key from here on, of objects that are read whole."""
    read, read_if_there = Counter[str](), cache_module.read_if_there

    def counting(store: Store, key: str) -> bytes | None:
        read[key] += 1
        return read_if_there(store, key)

    monkeypatch.setattr(cache_module, "read_if_there", counting)
    return read
