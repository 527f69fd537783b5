"""Documents → rows of T + 1 tokens; a row depends on the corpus and the settings alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from teacher_cache.corpus import Document
from teacher_cache.corpus_settings import RowSettings

DOCUMENTS_AT_ONCE = 256

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenRow:
    """tokens (T+1,) uint32; document_start (T,), True on a document's first token; loss_mask (T,) bool.

    Position t predicts tokens[t+1] and counts where loss_mask[t]: everywhere but where the label is padding.
    """

    tokens: NDArray[np.uint32]
    document_start: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]


def iter_rows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    *,
    eos_token_id: int,
    pad_token_id: int,
) -> Iterator[TokenRow]:
    """Rows in the documents' order.

    Each document is the tokenizer's own prefix (a BOS, if it adds one), its text and EOS. `packed` cuts their
    stream so that a row begins with the last token of the one before: every token is a label exactly once. Only
    the last row is padded. `document` gives each document a row. A document without text gives nothing.
    """
    tokenized = _tokenize(documents, tokenizer, eos_token_id)
    if settings.mode == "document":
        return (_row(tokens, _starts(tokens), settings.seq_len, pad_token_id) for tokens in tokenized)
    return _packed_rows(tokenized, settings.seq_len, pad_token_id)


def _packed_rows(tokenized: Iterator[NDArray[np.uint32]], seq_len: int, pad_token_id: int) -> Iterator[TokenRow]:
    tokens, starts = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
    for document in tokenized:
        tokens, starts = np.concatenate([tokens, document]), np.concatenate([starts, _starts(document)])
        complete = max(0, (len(tokens) - 1) // seq_len)
        for first in range(0, complete * seq_len, seq_len):
            span = slice(first, first + seq_len + 1)
            yield _row(tokens[span], starts[span], seq_len, pad_token_id)
        tokens, starts = tokens[complete * seq_len :], starts[complete * seq_len :]
    if len(tokens) > 1:
        yield _row(tokens, starts, seq_len, pad_token_id)


def _row(tokens: NDArray[np.uint32], starts: NDArray[np.bool_], seq_len: int, pad_token_id: int) -> TokenRow:
    """Cut or pad to T + 1 tokens. Padding is known by its place: EOS may be the padding token."""
    tokens, starts = tokens[: seq_len + 1], starts[:seq_len]
    padded = np.full(seq_len + 1, pad_token_id, np.uint32)
    padded[: len(tokens)] = tokens
    document_start = np.zeros(seq_len, np.bool_)
    document_start[: len(starts)] = starts
    return TokenRow(padded, document_start, loss_mask=np.arange(seq_len) < len(tokens) - 1)


def _starts(tokens: NDArray[np.uint32]) -> NDArray[np.bool_]:
    starts = np.zeros(len(tokens), np.bool_)
    starts[:1] = True
    return starts


def _tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, eos_token_id: int
) -> Iterator[NDArray[np.uint32]]:
    prefix = _own_prefix(tokenizer)
    for group in _groups((d.text for d in documents if d.text), DOCUMENTS_AT_ONCE):
        # Not verbose: documents longer than the teacher's context are cut into rows here, no reason to warn.
        encoded: Any = tokenizer(group, add_special_tokens=False, verbose=False)
        for ids in encoded["input_ids"]:
            yield np.array([*prefix, *ids, eos_token_id], np.uint32)


def _own_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: a BOS for some, nothing for Qwen."""
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("x")["input_ids"]
    places = [i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare]
    return dressed[: places[0]] if places else []


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
