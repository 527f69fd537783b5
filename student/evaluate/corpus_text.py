"""Text as rows, the way the builder makes them, without a teacher's targets."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from delta_common.errors import UserError
from teacher_cache.corpus.chat.rows import conversation_rows
from teacher_cache.corpus.chat.tokens import ConversationTokens
from teacher_cache.corpus.rows import TokenRow, iter_rows
from teacher_cache.corpus.source import Corpus, iter_documents
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import CorpusSettings, RowSettings

COLUMNS = ("messages_column", "prompt_column", "completion_column", "tools_column", "special_tokens")
"""Settings of a corpus of conversations that say where in a record they are, by their names in a manifest."""


def text_rows(source: str, cache: Cache, size: int) -> Iterator[CachedRows]:
    """Rows of a corpus, `size` at a time, with the tokenizer and the row settings of a cache.

    Raises `UserError` when the source cannot be read, or the cache has no tokenizer.
    """
    folder = cache.tokenizer_folder
    if folder is None:
        raise UserError(
            f"--corpus {source}: {cache.path} has no tokenizer to read text with; give --cache of a real one"
        )
    rows = _token_rows(source, folder, cache.manifest)
    while group := list(islice(rows, size)):
        yield _stacked(group, cache.manifest)


def documents_of_corpus(source: str) -> Iterator[str]:
    """The texts of a corpus, in order. Raises `UserError` when it cannot be read."""
    return (document.text for document in iter_documents(CorpusSettings(source=source)) if document.text)


def _token_rows(source: str, folder: Path, manifest: Manifest) -> Iterator[TokenRow]:
    """Rows of text, or of conversations where the cache has them, in the same columns."""
    from transformers import AutoTokenizer

    layout, corpus, identity = manifest.rows, CorpusSettings(source=source), manifest.tokenizer
    rows = RowSettings(seq_len=layout.seq_len, mode=layout.mode, context=layout.context)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if layout.conversations is None:
        eos, pad = identity.eos_token_id, identity.pad_token_id
        return iter_rows(iter_documents(corpus), tokenizer, rows, eos_token_id=eos, pad_token_id=pad)
    corpus = corpus.model_copy(update={name: manifest.corpus[name] for name in COLUMNS if name in manifest.corpus})
    rows = rows.model_copy(update=layout.conversations.model_dump())
    conversations = ConversationTokens(tokenizer, corpus, rows, identity.eos_token_id)
    tokenized = conversations.tokenize(Corpus(corpus).documents())
    return (row for row, _ in conversation_rows(tokenized, rows, identity.pad_token_id))


def _stacked(rows: list[TokenRow], manifest: Manifest) -> CachedRows:
    names = ("tokens", "document_start", "loss_mask", *(["role"] if rows[0].role is not None else []))
    return CachedRows(manifest, {name: np.stack([getattr(row, name) for row in rows]) for name in names})
