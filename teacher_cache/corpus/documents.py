"""What readers of a corpus give and rows are cut from: a document, the cursor at which it is found, its tokens."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache.settings import CorpusSettings

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A document's text, and a name that is the same each time the corpus is read."""

    id: str
    text: str


@dataclass(frozen=True)
class Cursor:
    """Where a document is in the corpus, so that a reader can begin with it."""

    document: int = 0
    """Number of documents before it in the corpus."""
    file: int = 0
    """Number of files before its own."""
    item: int = 0
    """Number of Parquet rows or JSONL lines before it in its file."""
    byte: int = 0
    """JSONL: where its line begins in the unpacked file."""
    state: dict[str, Any] | None = None
    """State of a `datasets` stream there; None at its beginning, and for files."""


BEGINNING = Cursor()

Placed = tuple[Cursor, Document]


@dataclass(frozen=True)
class Reader:
    """Reads the documents of one corpus, from any cursor on."""

    read: Callable[[Cursor], Iterator[Placed]]
    seeks: bool
    """Whether beginning at a cursor costs next to nothing; if not, all before it is read first."""


@dataclass(frozen=True)
class Tokenized:
    """A document's tokens (n,) uint32, and where the document is."""

    cursor: Cursor
    tokens: NDArray[np.uint32]


@dataclass(frozen=True)
class RowEnd:
    """Where the next row begins: after `used` tokens of this document."""

    document: Tokenized
    used: int


def require_column(settings: CorpusSettings, names: list[str], where: str) -> None:
    """Raise `UserError` unless corpus.text_column is among the columns' `names`."""
    if settings.text_column not in names:
        raise UserError(
            f"{where}: no column {settings.text_column!r}; set corpus.text_column to one it has: {', '.join(names)}"
        )


def make_document(text: object, name: object, settings: CorpusSettings, *, place: str, where: str) -> Document:
    """The document in a record; null counts as empty text.

    `place` is its name if the record gives none; `where`, the file, begins every message. Raises `UserError` if `text`
    is not valid text.
    """
    if not isinstance(text, str | None):
        raise UserError(
            f"{where}: {settings.text_column!r} of {place} is a {type(text).__name__}, not text; "
            "set corpus.text_column to a column of text"
        )
    found = SURROGATE.search(text or "")
    if found is not None:
        raise UserError(
            f"{where}: {settings.text_column!r} of {place} has half a surrogate pair at character {found.start()}, "
            "which is no text; replace it by U+FFFD, or remove the document"
        )
    return Document(_readable(place if name is None else str(name)), text or "")


def _readable(name: str) -> str:
    """The name, with `?` for each half of a surrogate pair, which can be neither stored nor printed."""
    return name.encode("utf-8", "replace").decode()
