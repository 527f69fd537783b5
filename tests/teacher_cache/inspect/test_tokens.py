"""Rows as the page's script gets them: what is built, what counts, and what is left out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from delta_common.errors import UserError
from teacher_cache import Cache
from teacher_cache.inspect.tokens import token_data


def test_rows_of_an_unfinished_cache_are_shown_as_far_as_they_are_there(long_cache: Cache) -> None:
    part = Cache(long_cache.store, long_cache.manifest, {1: long_cache.commits[1]})
    assert [row["row"] for row in token_data(part, None, None).json["rows"]] == [4, 5, 6, 7]
    with pytest.raises(UserError, match="--rows 0: its shard is not built yet"):
        token_data(part, [0], None)


def test_masked_positions_have_no_distribution(long_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = long_cache[0]
    masked = np.arange(40) < 30
    rows = replace(whole, arrays={**whole.arrays, "loss_mask": masked})
    monkeypatch.setattr(Cache, "__getitem__", lambda self, row: rows)
    positions = token_data(long_cache, [0], (20, 40)).json["rows"][0]["positions"]
    assert [position is not None for position in positions] == [True] * 10 + [False] * 10


def test_what_is_left_out_is_said(long_cache: Cache) -> None:
    cut = token_data(long_cache, [2], (3, 9)).cut
    assert cut[0] == "1 of 22 rows (others: --rows A,B)"
    assert cut[1] == "positions 3 to 8 of 40 (others: --tokens A:B)"
    assert len(cut) == (3 if long_cache.layout.mode == "exact" else 2)


def test_logits_are_relative_to_the_largest_and_texts_are_by_id(long_cache: Cache) -> None:
    data = json.loads(json.dumps(token_data(long_cache, [2], (0, 5)).json))
    (row,) = data["rows"]
    assert row["tokens"] == long_cache[2].tokens[:6].tolist()
    for position in row["positions"]:
        assert position["logits"][0] == 0
        for part in (position["logits"][: data["top_k"]], position["logits"][data["top_k"] :]):
            assert part == sorted(part, reverse=True)
        assert {str(token) for token in position["ids"]} <= data["texts"].keys()
        assert position["next"] is None or position["next"] <= 0
    assert data["texts"][str(row["tokens"][0])] == f"<{row['tokens'][0]}>"
