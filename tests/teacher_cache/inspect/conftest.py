"""Small synthetic caches that tests of this folder look at."""

from typing import Any

import pytest

from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache

SIZES: dict[str, Any] = {"rows": 10, "seq_len": 12, "vocab_size": 300, "hidden_size": 64, "rows_per_shard": 4}
KINDS: dict[str, dict[str, Any]] = {
    "top": {"top_k": 8},
    "sampled": {"top_k": 4, "samples": 12, "hidden": "int8", "hidden_stride": 3},
    "exact": {"top_k": 1, "mode": "exact", "hidden": "none"},
}
LONG_SIZES: dict[str, Any] = {"rows": 22, "seq_len": 40, "vocab_size": 300, "hidden_size": 16, "rows_per_shard": 4}
LONG_KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"top_k": 6, "samples": 20},
    "exact": {"top_k": 1, "mode": "exact"},
}


@pytest.fixture(scope="session", params=KINDS)
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """10 rows of 12 positions in 3 shards, of each kind."""
    folder = tmp_path_factory.mktemp("inspect") / request.param
    return open_cache(make_synthetic_cache(folder, **SIZES, **KINDS[request.param]))


@pytest.fixture(scope="session", params=LONG_KINDS)
def long_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """22 rows of 40 positions in 6 shards, in either mode."""
    folder = tmp_path_factory.mktemp("inspect") / request.param
    return open_cache(make_synthetic_cache(folder, **LONG_SIZES, **LONG_KINDS[request.param]))


@pytest.fixture(scope="session")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """11 shards of 2 rows, the last of 1."""
    folder = tmp_path_factory.mktemp("inspect") / "shards"
    return open_cache(make_synthetic_cache(folder, **{**SIZES, "rows": 21, "rows_per_shard": 2}, top_k=4))
