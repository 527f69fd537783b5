"""A cache is begun or continued by the same settings only, and keeps its whole shards when it grows."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.commits import commit_key

SIZES: dict[str, Any] = {
    "rows": 20,
    "seq_len": 12,
    "vocab_size": 300,
    "top_k": 8,
    "hidden_size": 16,
    "rows_per_shard": 8,
}


@pytest.fixture
def copy(synthetic_cache: Path, tmp_path: Path) -> Path:
    """A cache of one's own to damage."""
    return Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))


def test_a_grown_cache_keeps_its_whole_shards(copy: Path, synthetic_cache: Path) -> None:
    whole = (copy / commit_key(0)).stat().st_mtime_ns
    make_synthetic_cache(copy, **{**SIZES, "rows": 30})
    grown, before = open_cache(copy), open_cache(synthetic_cache)
    assert (copy / commit_key(0)).stat().st_mtime_ns == whole
    assert np.array_equal(grown.rows(range(20)).ids, before.rows(range(20)).ids)
    assert len(grown) == 30


def test_other_settings_are_refused_by_name(copy: Path) -> None:
    with pytest.raises(UserError, match=r"targets\.top_k: the cache has 8, these settings give 9"):
        make_synthetic_cache(copy, **{**SIZES, "top_k": 9})


def test_a_folder_with_other_content_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other content; choose another --out"):
        make_synthetic_cache(tmp_path, **SIZES)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
