"""Text as rows, the way the builder makes them, without a teacher's targets."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from delta_common.errors import UserError
from teacher_cache.corpus.rows import TokenRow, iter_rows
from teacher_cache.corpus.source import iter_documents
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import CorpusSettings, RowSettings


def text_rows(source: str, cache: Cache, size: int) -> Iterator[CachedRows]:
    """Rows of a corpus, `size` at a time, with the tokenizer and the row settings of a cache.

    Raises `UserError` when the source cannot be read, or the cache has no tokenizer.
    """
    folder = cache.tokenizer_folder
    if folder is None:
        raise UserError(
            f"--corpus {source}: {cache.path} has no tokenizer to read text with; give --cache of a real one"
        )
    from transformers import AutoTokenizer

    layout, tokenizer = cache.manifest.rows, cache.manifest.tokenizer
    rows = iter_rows(
        iter_documents(CorpusSettings(source=source)),
        AutoTokenizer.from_pretrained(folder),
        RowSettings(seq_len=layout.seq_len, mode=layout.mode, context=layout.context),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    while group := list(islice(rows, size)):
        yield _stacked(group, cache.manifest)


def _stacked(rows: list[TokenRow], manifest: Manifest) -> CachedRows:
    names = ("tokens", "document_start", "loss_mask")
    return CachedRows(manifest, {name: np.stack([getattr(row, name) for row in rows]) for name in names})
