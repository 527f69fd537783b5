"""Documents → rows of T + 1 tokens. Rows depend on the corpus, the tokenizer and the settings alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from delta_common.tokenizer import own_prefix
from teacher_cache.corpus.documents import Cursor, Document, Placed, RowEnd, Tokenized
from teacher_cache.corpus.long_text import PIECE, encode_long
from teacher_cache.settings import RowSettings

DOCUMENTS_AT_ONCE = 256
"""Documents in a group, which is tokenized at once."""
FIRST_DOCUMENTS = 16
"""Documents in the first group; each next one has twice as many. Whoever wants one row does not wait for many."""
CHARACTERS_AT_ONCE = 2**20
"""Characters that end a group early: until it is in an array, a token takes about a hundred bytes."""


@dataclass(frozen=True)
class TokenRow:
    """tokens (T+1,) uint32; document_start (T,) bool, True at a document's first token; loss_mask (T,) bool.

    Position t predicts tokens[t+1]. It counts if loss_mask[t]: in text unless tokens[t+1] is padding, in conversations
    where tokens[t+1] is a label. There role (T,) uint8 says whose token it is, by its code in `format.arrays.ROLES`.
    """

    tokens: NDArray[np.uint32]
    document_start: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]
    role: NDArray[np.uint8] | None = None


def iter_rows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    *,
    eos_token_id: int,
    pad_token_id: int,
) -> Iterator[TokenRow]:
    """Rows in the documents' order.

    Each document becomes the tokenizer's own prefix (a BOS, if it adds one), its text and EOS. Mode `packed` joins all
    documents and cuts the result so that each row begins with the last token of the row before: every token is a label
    exactly once. Only the last row is padded. Mode `document` gives each document a row of its own, cut or padded to
    T + 1 tokens. A document without text gives nothing.
    """
    placed = ((Cursor(number), document) for number, document in enumerate(documents))
    return (row for row, _ in cut_rows(tokenize(placed, tokenizer, eos_token_id), settings, pad_token_id))


def cut_rows(
    documents: Iterable[Tokenized], settings: RowSettings, pad_token_id: int, used: int = 0
) -> Iterator[tuple[TokenRow, RowEnd]]:
    """Rows and where each ends; the first `used` tokens of the first document are left out."""
    if settings.mode == "document":
        return _document_rows(documents, settings.seq_len, pad_token_id, used)
    return _packed_rows(documents, settings.seq_len, pad_token_id, used)


def _document_rows(
    documents: Iterable[Tokenized], seq_len: int, pad_token_id: int, used: int
) -> Iterator[tuple[TokenRow, RowEnd]]:
    for document in documents:
        tokens, length = document.tokens[used:], len(document.tokens)
        if len(tokens):
            yield _row(tokens, _starts(tokens), seq_len, pad_token_id), RowEnd(document, length)
        used = 0


def _packed_rows(
    documents: Iterable[Tokenized], seq_len: int, pad_token_id: int, used: int
) -> Iterator[tuple[TokenRow, RowEnd]]:
    tokens, starts = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
    begun: list[tuple[int, Tokenized]] = []  # each document, and the index in `tokens` of its first token, maybe < 0
    for document in documents:
        begun.append((len(tokens) - used, document))
        tokens = np.concatenate([tokens, document.tokens[used:]])
        starts = np.concatenate([starts, _starts(document.tokens)[used:]])
        used, complete = 0, max(0, (len(tokens) - 1) // seq_len)
        for first in range(0, complete * seq_len, seq_len):
            span = slice(first, first + seq_len + 1)
            yield _row(tokens[span], starts[span], seq_len, pad_token_id), _end(begun, first + seq_len)
        tokens, starts = tokens[complete * seq_len :], starts[complete * seq_len :]
        begun = [(first - complete * seq_len, document) for first, document in begun]
    if len(tokens) > 1:
        yield _row(tokens, starts, seq_len, pad_token_id), _end(begun, len(tokens) - 1)


def _end(begun: list[tuple[int, Tokenized]], last: int) -> RowEnd:
    """The end of a row whose last token has index `last`; drops from `begun` the documents before that token's."""
    while len(begun) > 1 and begun[1][0] <= last:
        del begun[0]
    first, document = begun[0]
    return RowEnd(document, last - first)


def _row(tokens: NDArray[np.uint32], starts: NDArray[np.bool_], seq_len: int, pad_token_id: int) -> TokenRow:
    """Cut or pad to T + 1 tokens. The loss mask goes by index, not by token: EOS may be the padding token."""
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


def tokenize(
    documents: Iterable[Placed], tokenizer: PreTrainedTokenizerBase, eos_token_id: int, *, special_as_text: bool = True
) -> Iterator[Tokenized]:
    """The tokens of each document that has text, in order.

    With `special_as_text` the name of a special token inside a document is tokenized as plain text, letter by letter.
    """
    prefix, end = np.array(own_prefix(tokenizer), np.uint32), np.array([eos_token_id], np.uint32)
    for group in _groups(placed for placed in documents if placed[1].text):
        texts = [document.text for _, document in group]
        for (cursor, _), ids in zip(group, _encode(tokenizer, texts, special_as_text), strict=True):
            yield Tokenized(cursor, np.concatenate([prefix, ids, end]))


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], special_as_text: bool
) -> Iterator[NDArray[np.uint32]]:
    """Token ids (n,) of each text: those of `tokenizer(text)`, without the masks and offsets that it computes too."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        # verbose=False: a document longer than the context is no reason to warn, it is cut into rows.
        encoded: Any = tokenizer(texts, add_special_tokens=False, verbose=False, split_special_tokens=special_as_text)
        yield from (np.array(ids, np.uint32) for ids in encoded["input_ids"])
        return
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = special_as_text
    if max(map(len, texts)) > PIECE:
        yield from (encode_long(backend, text) for text in texts)
        return
    for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
        yield np.array(encoding.ids, np.uint32)


def _groups(documents: Iterable[Placed]) -> Iterator[list[Placed]]:
    group: list[Placed] = []
    most, characters = FIRST_DOCUMENTS, 0
    for placed in documents:
        group.append(placed)
        characters += len(placed[1].text)
        if len(group) == most or characters >= CHARACTERS_AT_ONCE:
            yield group
            group, characters, most = [], 0, min(2 * most, DOCUMENTS_AT_ONCE)
    if group:
        yield group
