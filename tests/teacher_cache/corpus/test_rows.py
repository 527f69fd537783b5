"""Packed rows are one stream cut up, each token a label once; a document's own row is cut or padded."""

import logging
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from teacher_cache.corpus.documents import Cursor, Document
from teacher_cache.corpus.rows import DOCUMENTS_AT_ONCE, TokenRow, iter_rows, tokenize
from teacher_cache.settings import RowSettings
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()
PAD = 300

corpora = st.lists(st.text(max_size=30), max_size=12)
seq_lens = st.integers(1, 40)


def rows_of(
    texts: list[str],
    seq_len: int,
    *,
    mode: str = "packed",
    pad: int = EOS,
    tokenizer: PreTrainedTokenizerFast = TOKENIZER,
) -> list[TokenRow]:
    documents = (Document(str(i), text) for i, text in enumerate(texts))
    settings = RowSettings.model_validate({"seq_len": seq_len, "mode": mode})
    return list(iter_rows(documents, tokenizer, settings, eos_token_id=EOS, pad_token_id=pad))


def tokens_of(text: str) -> list[int]:
    return [*TOKENIZER(text)["input_ids"], EOS]


def stream_of(texts: list[str]) -> list[int]:
    return [token for text in texts if text for token in tokens_of(text)]


def without_padding(row: TokenRow) -> list[int]:
    return row.tokens[: 1 + row.loss_mask.sum()].tolist()


def assert_same(rows: list[TokenRow], expected: list[TokenRow]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for name, array in vars(other).items():
            assert np.array_equal(getattr(row, name), array), name


@given(texts=corpora, seq_len=seq_lens)
def test_packed_rows_joined_are_the_stream_of_tokens(texts: list[str], seq_len: int) -> None:
    rows = [without_padding(row) for row in rows_of(texts, seq_len)]
    joined = [token for number, row in enumerate(rows) for token in (row[1:] if number else row)]
    assert joined == stream_of(texts)
    assert all(row[0] == before[-1] for before, row in pairwise(rows))


@given(texts=corpora, seq_len=seq_lens)
def test_every_token_but_the_very_first_is_a_label_once(texts: list[str], seq_len: int) -> None:
    labels = [label for row in rows_of(texts, seq_len) for label in row.tokens[1:][row.loss_mask].tolist()]
    assert labels == stream_of(texts)[1:]


@given(texts=corpora, seq_len=seq_lens)
def test_document_starts_are_marked_where_documents_start_and_nowhere_else(texts: list[str], seq_len: int) -> None:
    lengths = [len(tokens_of(text)) for text in texts if text]
    marks = [mark for row in rows_of(texts, seq_len) for mark in row.document_start.tolist()]
    assert [place for place, mark in enumerate(marks) if mark] == [sum(lengths[:i]) for i in range(len(lengths))]


@given(texts=corpora, seq_len=seq_lens)
def test_only_the_last_packed_row_is_padded_and_only_at_its_end(texts: list[str], seq_len: int) -> None:
    rows = rows_of(texts, seq_len, pad=PAD)
    assert len(rows) == -(-max(0, len(stream_of(texts)) - 1) // seq_len)
    for number, row in enumerate(rows):
        labels = int(row.loss_mask.sum())
        assert labels == seq_len or number == len(rows) - 1
        assert labels > 0
        assert row.loss_mask[:labels].all()
        assert (row.tokens == PAD).tolist() == [False] * (labels + 1) + [True] * (seq_len - labels)
        assert not row.document_start[labels:].any()


@given(texts=corpora, more=corpora, seq_len=seq_lens)
def test_a_full_row_is_the_same_with_more_documents_behind_it(texts: list[str], more: list[str], seq_len: int) -> None:
    full = [row for row in rows_of(texts, seq_len) if row.loss_mask.all()]
    assert_same(rows_of(texts + more, seq_len)[: len(full)], full)


@given(texts=corpora, seq_len=seq_lens, mode=st.sampled_from(["packed", "document"]))
def test_rows_depend_on_documents_and_settings_alone(texts: list[str], seq_len: int, mode: str) -> None:
    assert_same(rows_of(texts, seq_len, mode=mode), rows_of(texts, seq_len, mode=mode))


@given(texts=corpora, seq_len=seq_lens, mode=st.sampled_from(["packed", "document"]))
def test_empty_documents_give_nothing(texts: list[str], seq_len: int, mode: str) -> None:
    with_text = [text for text in texts if text]
    assert_same(rows_of(texts, seq_len, mode=mode), rows_of(with_text, seq_len, mode=mode))


@given(texts=corpora, seq_len=seq_lens, mode=st.sampled_from(["packed", "document"]))
def test_masks_and_marks_do_not_depend_on_what_the_padding_token_is(texts: list[str], seq_len: int, mode: str) -> None:
    padded = rows_of(texts, seq_len, mode=mode, pad=PAD)
    for row, other in zip(rows_of(texts, seq_len, mode=mode), padded, strict=True):
        assert np.array_equal(row.loss_mask, other.loss_mask)
        assert np.array_equal(row.document_start, other.document_start)
        assert np.array_equal(row.tokens, np.where(other.tokens == PAD, EOS, other.tokens))


@given(texts=corpora, seq_len=seq_lens)
def test_a_document_row_is_its_document_cut_or_padded(texts: list[str], seq_len: int) -> None:
    rows = rows_of(texts, seq_len, mode="document", pad=PAD)
    expected = [tokens_of(text) for text in texts if text]
    assert len(rows) == len(expected)
    for row, tokens in zip(rows, expected, strict=True):
        kept = tokens[: seq_len + 1]
        assert row.tokens.tolist() == kept + [PAD] * (seq_len + 1 - len(kept))
        assert row.loss_mask.tolist() == [place < len(kept) - 1 for place in range(seq_len)]
        assert row.document_start.tolist() == [place == 0 for place in range(seq_len)]


def test_rows_have_the_types_and_shapes_they_promise() -> None:
    for mode in ("packed", "document"):
        for row in rows_of(["some text", "x"], 7, mode=mode):
            assert (row.tokens.dtype, row.tokens.shape) == (np.uint32, (8,))
            assert (row.document_start.dtype, row.document_start.shape) == (np.bool_, (7,))
            assert (row.loss_mask.dtype, row.loss_mask.shape) == (np.bool_, (7,))


def test_packed_rows_of_two_short_documents_are_these() -> None:
    a, b, c = TOKENIZER("abc")["input_ids"]
    first, second = rows_of(["ab", "c"], 3)
    assert first.tokens.tolist() == [a, b, EOS, c]
    assert first.document_start.tolist() == [True, False, False]
    assert first.loss_mask.tolist() == [True, True, True]
    assert second.tokens.tolist() == [c, EOS, EOS, EOS]
    assert second.document_start.tolist() == [True, False, False]
    assert second.loss_mask.tolist() == [True, False, False]


def test_the_end_of_a_document_is_a_label_though_padding_looks_the_same() -> None:
    (row,) = rows_of(["ab"], 4, mode="document")
    assert row.tokens[2:].tolist() == [EOS, EOS, EOS]
    assert row.loss_mask.tolist() == [True, True, False, False]


def test_a_document_that_fills_its_row_to_the_last_label_is_neither_cut_nor_padded() -> None:
    (row,) = rows_of(["abcd"], 4, mode="document")
    assert row.tokens.tolist() == tokens_of("abcd")
    assert row.loss_mask.all()


@pytest.mark.parametrize("mode", ["packed", "document"])
@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_a_corpus_without_text_gives_no_row(texts: list[str], mode: str) -> None:
    assert rows_of(texts, 4, mode=mode) == []


def test_more_documents_than_are_tokenized_at_once_lose_none() -> None:
    texts = [f"document {i}" for i in range(2 * DOCUMENTS_AT_ONCE + 3)]
    labels = [label for row in rows_of(texts, 64) for label in row.tokens[1:][row.loss_mask].tolist()]
    assert labels == stream_of(texts)[1:]
    assert len(rows_of(texts, 64, mode="document")) == len(texts)


@pytest.mark.parametrize("mode", ["packed", "document"])
def test_rows_are_given_as_soon_as_their_documents_are_there(mode: str) -> None:
    def endless() -> Any:
        number = 0
        while True:
            yield Document(str(number), f"document {number}")
            number += 1

    settings = RowSettings.model_validate({"seq_len": 16, "mode": mode})
    rows = iter_rows(endless(), TOKENIZER, settings, eos_token_id=EOS, pad_token_id=EOS)
    assert_same(list(islice(rows, 50)), rows_of([f"document {i}" for i in range(100)], 16, mode=mode)[:50])


def tokenizer_adding(template: str) -> tuple[PreTrainedTokenizerFast, int]:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    special = [("<s>", bos), (tokenizer.eos_token, EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer, bos


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A <|endoftext|>"])
def test_a_tokenizer_that_adds_a_bos_gets_it_before_each_document_and_one_eos_behind(template: str) -> None:
    tokenizer, bos = tokenizer_adding(template)
    assert tokenizer("ab")["input_ids"][0] == bos
    (packed,) = rows_of(["ab", "", "c"], 6, tokenizer=tokenizer)
    assert packed.tokens.tolist() == [bos, *tokens_of("ab"), bos, *tokens_of("c")]
    assert packed.document_start.tolist() == [True, False, False, False, True, False]
    first, second = rows_of(["ab", "", "c"], 3, mode="document", tokenizer=tokenizer)
    assert first.tokens.tolist() == [bos, *tokens_of("ab")]
    assert second.tokens.tolist() == [bos, *tokens_of("c"), EOS]
    assert second.loss_mask.tolist() == [True, True, False]


def test_a_tokenizer_that_adds_an_eos_alone_gets_no_second_one() -> None:
    tokenizer, _ = tokenizer_adding("$A <|endoftext|>")
    assert tokenizer("ab")["input_ids"] == tokens_of("ab")
    assert_same(rows_of(["ab", "c"], 3, tokenizer=tokenizer), rows_of(["ab", "c"], 3))


def test_documents_longer_than_the_tokenizers_limit_are_whole_and_raise_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 8
    text = "longer than eight tokens"
    transformers = logging.getLogger("transformers")
    transformers.addHandler(caplog.handler)
    try:
        rows = rows_of([text], 64, tokenizer=tokenizer)
        assert not caplog.records
        tokenizer(text)
        assert "longer than the specified maximum" in caplog.text
    finally:
        transformers.removeHandler(caplog.handler)
    assert without_padding(rows[0]) == tokens_of(text)


@pytest.mark.parametrize(("as_text", "control"), [(True, 0), (False, 1)])
def test_a_special_tokens_name_in_a_document_is_its_letters_unless_told(as_text: bool, control: int) -> None:
    placed = [(Cursor(0), Document("a", "before <|endoftext|> after"))]
    (document,) = tokenize(placed, byte_tokenizer(), EOS, special_as_text=as_text)
    assert (document.tokens[:-1] == EOS).sum() == control
    assert byte_tokenizer().decode(document.tokens[:-1]) == "before <|endoftext|> after"
