"""Caches to damage, and how much of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_cache.build.synthetic import make_synthetic_cache
from tests.helpers.damageable import SIZES


@pytest.fixture(scope="session")
def sound_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic_cache(tmp_path_factory.mktemp("sound") / "cache", **SIZES)


@pytest.fixture
def restored(sound_cache: Path, tmp_path: Path) -> Callable[[], Path]:
    """A sound copy, made anew at each call."""
    path = tmp_path / "cache"

    def restore() -> Path:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(sound_cache, path)
        return path

    return restore
