from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.build.synthetic import drawn_tokens, make_synthetic_cache

SIZES: dict[str, Any] = {
    "rows": 20,
    "seq_len": 12,
    "vocab_size": 300,
    "top_k": 8,
    "hidden_size": 16,
    "rows_per_shard": 8,
}


def test_same_settings_give_the_same_bytes_another_seed_others(synthetic_cache: Path, tmp_path: Path) -> None:
    again = make_synthetic_cache(tmp_path / "again", **SIZES)
    other = make_synthetic_cache(tmp_path / "other", **SIZES, seed=1)
    files = [p.relative_to(again) for p in again.rglob("*") if p.is_file()]
    assert all((again / f).read_bytes() == (synthetic_cache / f).read_bytes() for f in files)
    key = "logits/ids/c/0/0/0"
    assert (other / key).read_bytes() != (again / key).read_bytes()


def test_rows_do_not_depend_on_the_shard_they_are_in(synthetic_cache: Path, tmp_path: Path) -> None:
    other = open_cache(make_synthetic_cache(tmp_path / "other", **{**SIZES, "rows_per_shard": 4})).rows(range(20))
    rows = open_cache(synthetic_cache).rows(range(20))
    assert np.array_equal(other.tokens, rows.tokens)
    assert np.array_equal(other.ids, rows.ids)


@pytest.mark.parametrize("vocab_size", [5, 128, 1000])
def test_tokens_are_drawn_by_inverting_the_cumulative_distribution(vocab_size: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(500, vocab_size, generator=random)
    uniform = torch.rand(500, generator=random)
    uniform[0] = 0
    ends = torch.softmax(logits.double(), -1).cumsum(-1)
    drawn = drawn_tokens(logits, uniform)
    assert torch.equal(drawn, torch.searchsorted(ends, uniform.double()[:, None]).squeeze(1))
    assert drawn.unique().numel() > min(vocab_size, 100) / 2


def test_cached_logits_are_the_head_applied_to_a_state(tmp_path: Path) -> None:
    """The Zipf channel and the embeddings the cache carries belong to its distributions: rank V, not noise."""
    cache = open_cache(
        make_synthetic_cache(tmp_path / "dense", **{**SIZES, "top_k": 300}, value_dtype="float32", dtype="float32")
    )
    rows = cache.rows(range(8))
    logits = np.zeros((8 * 12, 300), np.float32)
    np.put_along_axis(logits, rows.ids.reshape(-1, 300).astype(np.int64), rows.values.reshape(-1, 300), axis=1)
    head = load_file(cache.frozen_weights)["lm_head.weight"]
    states, *_ = np.linalg.lstsq(head, logits.T, rcond=None)
    assert np.abs(head @ states - logits.T).max() < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 301}, "--top-k 301: larger than --vocab-size 300"),
        ({"rows": 0}, "--rows 0: must be at least 1"),
        ({"samples": -1}, "--samples -1: must be at least 0"),
        ({"seed": -1}, "--seed -1: must be from 0"),
        ({"seed": 2**63}, "--seed 9223372036854775808: must be from 0"),
    ],
)
def test_bad_sizes_are_one_line(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_synthetic_cache(tmp_path / "bad", **{**SIZES, **change})
    assert not (tmp_path / "bad").exists()
