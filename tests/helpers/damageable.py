"""A small cache that fault tests damage, and what a cache holds to the byte."""

from pathlib import Path
from typing import Any

from teacher_cache.store.open import open_store

SIZES: dict[str, Any] = {
    "rows": 10,
    "seq_len": 6,
    "vocab_size": 120,
    "top_k": 3,
    "samples": 6,
    "hidden_size": 66,
    "rows_per_shard": 4,
    "hidden": "int8",
}


def contents(cache: Path) -> dict[str, bytes]:
    """Every file of a cache by its key, but for locks and quarantine."""
    files = (path for path in sorted(cache.rglob("*")) if path.is_file())
    return {key: (cache / key).read_bytes() for key in (str(f.relative_to(cache)) for f in files) if key[0] != "."}


def stored(url: str) -> dict[str, bytes]:
    """The same of a cache in an object store."""
    store = open_store(url)
    return {key: store.read(key) for key in sorted(store.sizes())}
