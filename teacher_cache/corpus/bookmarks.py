"""Bookmarks: where in the corpus a shard begins, kept beside the cache so that nobody reads what lies before again.

They are hints: a build without them, or with false ones, gives the same rows and takes longer.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from teacher_cache.corpus.documents import Cursor, RowEnd
from teacher_cache.format.keys import BOOKMARKS_FOLDER, CORPUS_ROWS_KEY
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.sealed import Record, SealError, canonical_json, digest, parse_sealed, seal
from teacher_cache.store.base import Store, read_if_there

KEY = re.compile(rf"{BOOKMARKS_FOLDER}/(\d{{12}})\.json", re.ASCII)


class Hint(Record):
    """Something a builder found out about the corpus, for the next one; it holds for one basis only."""

    basis: str
    """`bookmarks_basis` of the cache."""


class CorpusLength(Hint):
    """The number of rows in the whole corpus."""

    rows: int


class Bookmark(Hint):
    """Where a row begins: in or behind a document, after `used` of its tokens."""

    row: int
    place: Cursor
    used: int
    """Tokens of the document before the row's first one; all of them where each document has a row of its own. Where
    whole conversations are packed, rows before it in the window of conversations that begins with the document."""
    tokens: str
    """Digest of the document's tokens, uint32 little-endian, checked by `holds` before reading begins here."""

    def holds(self, tokens: NDArray[np.uint32], mode: Literal["packed", "document", "window"]) -> bool:
        """Whether the document found there has the tokens (n,) it had, and the row can begin in it or its window."""
        rest = len(tokens) - self.used
        begins = mode == "window" or (rest == 0 if mode == "document" else 0 < rest <= len(tokens))
        return _tokens_digest(tokens) == self.tokens and begins


HintT = TypeVar("HintT", bound=Hint)


class Bookmarks:
    """The bookmarks of one cache. Each is a small object of its own, so any number of builders may write them."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._basis = store, bookmarks_basis(manifest)
        self._seen: set[int] = set()
        self.rows_apart = manifest.rows.rows_per_shard
        """Only rows that begin a shard get a bookmark."""
        self.revision: str | None = manifest.corpus.get("revision")
        """Commit of the Hub data set the rows come from; None for local files."""

    def between(self, after: int, row: int) -> Iterator[Bookmark]:
        """Bookmarks of rows in (`after`, `row`], the last first.

        Damaged ones are passed over, and those of another corpus, another tokenizer or other rows.
        """
        rows = (bookmark_row(f"{BOOKMARKS_FOLDER}/{name}") for name in self._store.names(BOOKMARKS_FOLDER))
        for known in sorted((at for at in rows if at is not None and after < at <= row), reverse=True):
            data = read_if_there(self._store, bookmark_key(known))
            bookmark = None if data is None else _parse_bookmark(data, bookmark_key(known), self._basis)
            if bookmark is not None:
                yield bookmark

    def save(self, row: int, end: RowEnd) -> None:
        """Write the bookmark of `row`, which begins where the row before it ends, if it begins a shard."""
        if row % self.rows_apart or row in self._seen:
            return
        document = end.document
        bookmark = Bookmark(
            row=row, place=document.cursor, used=end.used, tokens=_tokens_digest(document.tokens), basis=self._basis
        )
        self._publish(bookmark_key(row), seal(bookmark))
        self._seen.add(row)

    def length(self) -> int | None:
        """The number of rows in the whole corpus, if a build has counted them."""
        data = read_if_there(self._store, CORPUS_ROWS_KEY)
        found = None if data is None else _parse(CorpusLength, data, self._basis)
        return None if found is None or found.rows < 1 else found.rows

    def save_length(self, rows: int) -> None:
        """Write the number of rows in the whole corpus."""
        self._publish(CORPUS_ROWS_KEY, seal(CorpusLength(basis=self._basis, rows=rows)))

    def _publish(self, key: str, data: bytes) -> None:
        self._store.remove_leftovers(key)
        if read_if_there(self._store, key) != data:
            # No lock is held here: another writer of the same bookmark may have removed this one's file as a leftover.
            with suppress(FileNotFoundError):
                self._store.publish(key, data)


def bookmarks_basis(manifest: Manifest) -> str:
    """sha256 of all that decides where rows begin: corpus, tokenizer, row length and mode, and of conversations how
    they are cut and what counts.
    """
    corpus, tokenizer, rows = manifest.corpus, manifest.tokenizer, manifest.rows
    content = [corpus, tokenizer.sha256, tokenizer.eos_token_id, rows.mode, rows.seq_len]
    if rows.conversations is not None:
        content.append(rows.conversations.model_dump(mode="json"))
    return hashlib.sha256(canonical_json(content)).hexdigest()


def bookmark_key(row: int) -> str:
    """The key of a row's bookmark."""
    return f"{BOOKMARKS_FOLDER}/{row:012d}.json"


def bookmark_row(key: str) -> int | None:
    """The row whose bookmark lies at `key`; None if no bookmark has such a key."""
    found = KEY.fullmatch(key)
    return int(found[1]) if found else None


def is_hint_key(key: str) -> bool:
    """Whether `key` is that of a bookmark or of the corpus' length."""
    return key == CORPUS_ROWS_KEY or bookmark_row(key) is not None


def unsound_hints(store: Store, manifest: Manifest, keys: Sequence[str]) -> list[str]:
    """Those of `keys` whose objects are damaged or belong to another cache; a build passes over them."""
    basis = bookmarks_basis(manifest)
    found = zip(keys, store.read_all(keys), strict=True)
    return [key for key, data in found if _parse_any(data, key, basis) is None]


def _parse_any(data: bytes, key: str, basis: str) -> Hint | None:
    return _parse(CorpusLength, data, basis) if key == CORPUS_ROWS_KEY else _parse_bookmark(data, key, basis)


def _parse_bookmark(data: bytes, key: str, basis: str) -> Bookmark | None:
    bookmark = _parse(Bookmark, data, basis)
    if bookmark is None or bookmark_key(bookmark.row) != key:
        return None
    numbers = [bookmark.used, *(number for number in asdict(bookmark.place).values() if isinstance(number, int))]
    return bookmark if min(numbers) >= 0 else None


def _parse(kind: type[HintT], data: bytes, basis: str) -> HintT | None:
    try:
        hint = parse_sealed(kind, data)
    except SealError:
        return None
    return hint if hint.basis == basis else None


def _tokens_digest(tokens: NDArray[np.uint32]) -> str:
    return digest(tokens.astype("<u4").tobytes())
