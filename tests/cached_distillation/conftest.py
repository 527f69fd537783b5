"""A tiny cache, shared by the tests of distillation in any loop."""

from pathlib import Path

import pytest

from cached_distillation.dataset import CacheDataset
from tests.helpers.small_training import make_uneven_cache


@pytest.fixture(scope="session")
def uneven_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 rows of 64 tokens' vocabulary in shards of 8, with unequal numbers of valid positions; do not write to it."""
    return make_uneven_cache(tmp_path_factory.mktemp("any-loop") / "cache")


@pytest.fixture
def dataset(uneven_path: Path) -> CacheDataset:
    return CacheDataset(uneven_path)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """student-train says its rank in the environment; accelerate would look for other processes by it."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
