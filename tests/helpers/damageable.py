"""A small cache to damage, ways to damage one, and what a cache holds to the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.format.codec import describe_arrays, encode_shard
from teacher_cache.format.commits import CommitRecord, StoredObject, commit_key, parse_commit
from teacher_cache.format.sealed import digest, seal
from teacher_cache.read.cache import open_cache
from teacher_cache.store.local import LocalStore
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


def rewrite_shard(path: Path, shard: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a shard's arrays and commit them with right digests, as a faulty builder would."""
    manifest, store = open_cache(path).manifest, LocalStore(path)
    rows = manifest.shard_rows(shard)
    arrays = {name: np.array(array) for name, array in open_cache(path).rows(rows).arrays.items()}
    change(arrays)
    objects = encode_shard(manifest, describe_arrays(manifest), shard, arrays)
    for key, data in objects.items():
        store.publish(key, data)
    key = commit_key(shard)
    record = parse_commit(store.read(key), key, manifest, key)
    stored = {k: StoredObject(bytes=len(data), xxh3_128=digest(data)) for k, data in objects.items()}
    store.publish(key, seal(CommitRecord(**{**vars(record), "objects": stored})))
