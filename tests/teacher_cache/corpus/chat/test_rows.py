"""Rows of whole conversations: none is cut or seen twice, they fit well, and any row can be begun at."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.corpus.chat import rows as module
from teacher_cache.corpus.chat.rows import best_fit, conversation_rows, row_of
from teacher_cache.corpus.documents import Cursor, Marks, Tokenized
from teacher_cache.format.arrays import ROLES
from teacher_cache.settings import RowSettings

ASSISTANT = ROLES.index("assistant")
PAD = 7


def conversation(length: int, number: int = 0) -> Tokenized:
    """Tokens 100 · number + 1, + 2, …; the second half counts."""
    counted = np.arange(length) >= length // 2
    roles = np.where(counted, ASSISTANT, ROLES.index("user")).astype(np.uint8)
    tokens = (100 * number + 1 + np.arange(length)).astype(np.uint32)
    return Tokenized(Cursor(number), tokens, Marks(counted, roles))


@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_item_lies_in_one_bin_and_bins_hold_it(lengths: list[int]) -> None:
    bins = best_fit(lengths, 20)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in members) <= 20 for members in bins)
    half_empty = [members for members in bins if sum(lengths[item] for item in members) <= 10]
    assert len(half_empty) <= 1


def lognormal(count: int, mean: float, deviation: float, seed: int = 0) -> list[int]:
    """Lengths whose logarithms have this mean and standard deviation."""
    chance = random.Random(seed)
    return [max(8, int(chance.lognormvariate(mean, deviation))) for _ in range(count)]


@pytest.mark.parametrize(
    ("mean", "deviation", "room"), [(6.6, 0.75, 2048), (6.6, 0.75, 4096), (5.3, 0.9, 1024), (4.8, 0.5, 512)]
)
def test_a_mix_of_lengths_as_in_public_chats_wastes_less_than_one_in_twenty(
    mean: float, deviation: float, room: int
) -> None:
    """Log-normal lengths: multi-turn chats with a median of 735 tokens, shorter and longer, and single questions."""
    lengths = [min(length, room) for length in lognormal(4000, mean, deviation)]
    rows = best_fit(lengths, room)
    wasted = 1 - sum(length - 1 for length in lengths) / (len(rows) * (room - 1))
    assert wasted <= 0.05


def test_first_rows_are_a_fair_sample() -> None:
    """Who builds only some rows gets conversations as long as the others."""
    lengths = [min(length, 2048) for length in lognormal(4000, 6.0, 0.8)]
    rows = best_fit(lengths, 2048)
    first = [lengths[item] for members in rows[: len(rows) // 4] for item in members]
    assert abs(np.mean(first) / np.mean(lengths) - 1) < 0.1


def test_a_row_says_where_conversations_begin_and_what_counts() -> None:
    row = row_of([conversation(4), conversation(3, 1)], 8, PAD)
    assert row.tokens.tolist() == [1, 2, 3, 4, 101, 102, 103, PAD, PAD]
    assert np.flatnonzero(row.document_start).tolist() == [0, 4]
    assert row.tokens[1:][row.loss_mask].tolist() == [3, 4, 102, 103]
    assert row.role is not None
    assert row.role.tolist() == [3, 4, 4, 3, 4, 4, 0, 0]


def test_the_first_token_of_a_conversation_is_no_label() -> None:
    counted = Marks(np.ones(3, np.bool_), np.full(3, ASSISTANT, np.uint8))
    row = row_of([Tokenized(Cursor(), np.arange(3, dtype=np.uint32), counted)] * 2, 6, PAD)
    assert row.loss_mask.tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("mode", ["packed", "document"])
def test_rows_can_be_begun_at_any_row(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_ROWS", 3)
    settings = RowSettings(seq_len=15, mode=mode)
    chance = random.Random(0)
    conversations = [conversation(chance.randint(2, 16), number) for number in range(40)]
    whole = list(conversation_rows(conversations, settings, PAD))
    for at, (_, end) in enumerate(whole):
        begun = conversations[end.document.cursor.document :]
        rest = [row.tokens.tolist() for row, _ in conversation_rows(begun, settings, PAD, end.used)]
        assert rest == [row.tokens.tolist() for row, _ in whole[at + 1 :]]
    seen = np.concatenate([row.tokens for row, _ in whole])
    everything = np.concatenate([part.tokens for part in conversations])
    assert sorted(seen[seen != PAD].tolist()) == sorted(everything[everything != PAD].tolist())
