"""Tokens of conversations: which are labels, who speaks them, and what a row can hold."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.chat.tokens import TOO_LONG, ConversationTokens, inside
from teacher_cache.corpus.documents import Cursor, Document, Tokenized
from teacher_cache.corpus.messages import Conversation, Message
from teacher_cache.format.arrays import ROLES
from teacher_cache.settings import CorpusSettings, RowSettings
from tests.helpers.chat_families import FAMILIES, Family, conversations, tokenizer_of

CHATML = FAMILIES["ChatML"]
LossOn = Literal["all", "assistant", "last"]


def maker(
    family: Family = CHATML,
    *,
    loss_on: LossOn = "assistant",
    seq_len: int = 4096,
    truncate_at: Literal["turn", "token"] = "turn",
    special: Literal["text", "control"] = "text",
    marked: bool = False,
) -> ConversationTokens:
    tokenizer = tokenizer_of(family, marked=marked)
    corpus = CorpusSettings(source="x", messages_column="messages", special_tokens=special)
    rows = RowSettings(seq_len=seq_len, loss_on=loss_on, truncate_at=truncate_at)
    return ConversationTokens(tokenizer, corpus, rows, tokenizer.eos_token_id)


def tokenized(tokens: ConversationTokens, several: Iterable[list[Message]]) -> list[Tokenized]:
    placed = [(Cursor(n), Document(f"x:{n}", "", Conversation(tuple(messages)))) for n, messages in enumerate(several)]
    return list(tokens.tokenize(placed))


def labels(found: Tokenized) -> list[int]:
    assert found.marks is not None
    return found.tokens[found.marks.counted].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_those_of_transformers_where_a_template_has_markers(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, several = tokenizer_of(family, marked=True), conversations(family)
    for messages, found in zip(several, tokenized(maker(family, marked=True), several), strict=True):
        expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found.tokens.tolist() == expected["input_ids"]
        assert found.marks is not None
        assert found.marks.counted.astype(int).tolist() == expected["assistant_masks"]


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_what_was_written_out_by_hand(name: str) -> None:
    """Without markers: the letters of the labels are those of the assistant's pieces, and so are all tokens'."""
    family = FAMILIES[name]
    tokenizer, several = tokenizer_of(family), conversations(family)
    for messages, found in zip(several, tokenized(maker(family), several), strict=True):
        pieces = family.by_hand(messages)
        assert tokenizer.decode(found.tokens) == "".join(words for words, _ in pieces)
        mine = "".join(words for words, is_mine in pieces if is_mine)
        assert tokenizer.decode(labels(found)).replace(" ", "") == mine.replace(" ", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_special_token_counts_but_those_that_end_a_turn(name: str) -> None:
    family = FAMILIES[name]
    special = set(tokenizer_of(family).all_special_ids) | set(tokenizer_of(family).added_tokens_decoder)
    for messages, found in zip(conversations(family), tokenized(maker(family), conversations(family)), strict=True):
        counted = [token for token in labels(found) if token in special]
        assert len(counted) == sum(message["role"] == "assistant" for message in messages)
        assert len(set(counted)) == 1


def test_of_the_last_answer_alone_and_of_all() -> None:
    messages = [{"role": role, "content": word} for role, word in zip(("user", "assistant") * 2, "abcd", strict=True)]
    tokenizer = tokenizer_of(CHATML)
    [last] = tokenized(maker(loss_on="last"), [messages])
    assert tokenizer.decode(labels(last)) == "d<|im_end|>"
    [everything] = tokenized(maker(loss_on="all"), [messages])
    assert labels(everything) == everything.tokens[1:].tolist()


def test_roles_are_told_by_token() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    [found] = tokenized(maker(), [[*messages, {"role": "assistant", "content": "a"}]])
    assert found.marks is not None
    spoken = {role: found.tokens[found.marks.roles == code] for code, role in enumerate(ROLES)}
    tokenizer = tokenizer_of(CHATML)
    assert [tokenizer.decode(spoken[role]) for role in ("system", "user", "assistant")] == ["s", "u", "a<|im_end|>"]
    assert not len(spoken["padding"])


def test_a_long_conversation_is_cut_behind_an_answer_or_where_told() -> None:
    messages = [{"role": role, "content": "word " * 5} for role in ("user", "assistant") * 3]
    [whole] = tokenized(maker(), [messages])
    [cut] = tokenized(maker(seq_len=len(whole.tokens) - 2), [messages])
    text = tokenizer_of(CHATML).decode(cut.tokens)
    assert text.endswith("<|im_end|>\n")
    assert text.count("<|im_start|>assistant") == 2
    [token] = tokenized(maker(seq_len=len(whole.tokens) - 2, truncate_at="token"), [messages])
    assert len(token.tokens) == len(whole.tokens) - 1


def test_a_cut_that_leaves_no_label_leaves_no_row() -> None:
    messages = [{"role": role, "content": "word " * 5} for role in ("user", "assistant")]
    for truncate_at in ("turn", "token"):
        tokens = maker(seq_len=6, truncate_at=truncate_at)
        assert tokenized(tokens, [messages]) == []
        assert tokens.skipped.counts == {TOO_LONG: 1}
    last = maker(seq_len=30, loss_on="last")
    assert tokenized(last, [messages * 3]) == []


def test_names_of_special_tokens_in_messages_are_letters_or_tokens_as_asked() -> None:
    messages = [{"role": "user", "content": "<|im_end|>?"}, {"role": "assistant", "content": "ends <|im_end|> it"}]
    tokenizer = tokenizer_of(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    [letters] = tokenized(maker(), [messages])
    [tokens] = tokenized(maker(special="control"), [messages])
    assert tokenizer.decode(letters.tokens) == tokenizer.decode(tokens.tokens)
    assert (labels(letters).count(end), labels(tokens).count(end)) == (1, 2)


def test_plain_prompts_end_in_eos_which_counts() -> None:
    tokens = maker()
    document = Document("x", "", Conversation(plain=("2 + 2 =", " 4")))
    [found] = tokens.tokenize([(Cursor(), document)])
    tokenizer = tokenizer_of(CHATML)
    assert tokenizer.decode(found.tokens) == "2 + 2 = 4<|im_end|>"
    assert tokenizer.decode(labels(found)) == " 4<|im_end|>"


def test_what_a_template_refuses_is_counted_and_the_rest_goes_on() -> None:
    tokens = maker(FAMILIES["Gemma"])
    hi = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert len(tokenized(tokens, [[{"role": "system", "content": "s"}, *hi], hi])) == 1
    assert list(tokens.skipped.counts) == ["that the template refuses (System role not supported)"]


def test_a_template_without_an_end_of_turn_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    family = replace(CHATML, marked="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    hi = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert len(tokenized(maker(family), [hi, hi])) == 2
    assert capsys.readouterr().err.count("so a student will not learn to stop") == 1
    tokenized(maker(), [hi])
    assert not capsys.readouterr().err


def test_a_tokenizer_without_offsets_is_refused() -> None:
    corpus = CorpusSettings(source="x", messages_column="messages")
    with pytest.raises(UserError, match="does not say which characters a token stands for"):
        ConversationTokens(object(), corpus, RowSettings(), 0)  # type: ignore[arg-type]


def test_a_token_is_inside_a_span_if_any_of_its_characters_is() -> None:
    offsets = np.array([[0, 2], [2, 2], [2, 5], [5, 6]])
    assert inside([(1, 3)], offsets).tolist() == [True, True, True, False]
    assert not inside([], offsets).any()
