"""A document, its place in the corpus, its tokens: what readers of a corpus give, and what rows are cut from."""

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
    """A document's text, and a name that stays the same however often the corpus is read."""

    id: str
    text: str


@dataclass(frozen=True)
class Cursor:
    """Where a document is, so that a reader can begin there."""

    document: int = 0
    """Documents of the corpus before it."""
    file: int = 0
    """Files before the one it is in."""
    item: int = 0
    """Parquet rows or JSONL lines of that file before it."""
    byte: int = 0
    """JSONL: bytes of the unpacked file before its line."""
    state: dict[str, Any] | None = None
    """What a stream of the datasets package says of itself there; None at its beginning."""


BEGINNING = Cursor()

Placed = tuple[Cursor, Document]


@dataclass(frozen=True)
class Reader:
    """Documents of one corpus from a place on; `seeks` where getting there costs about nothing."""

    read: Callable[[Cursor], Iterator[Placed]]
    seeks: bool


@dataclass(frozen=True)
class Tokenized:
    """A document's tokens (n,) uint32, and where the document is."""

    place: Cursor
    tokens: NDArray[np.uint32]


@dataclass(frozen=True)
class RowEnd:
    """Where a row ends and the next begins: in this document, with so many of its tokens behind it."""

    document: Tokenized
    used: int


def require_column(settings: CorpusSettings, names: list[str], where: str) -> None:
    """Raise `UserError` where there is no column of text."""
    if settings.text_column not in names:
        raise UserError(
            f"{where}: no column {settings.text_column!r}; set corpus.text_column to one it has: {', '.join(names)}"
        )


def make_document(text: Any, name: Any, settings: CorpusSettings, *, place: str, where: str) -> Document:
    """A document of what a record holds; null is no text, as an empty one is. Raises `UserError` on anything else."""
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
    """A document's name with nothing in it that could not be stored or printed."""
    return name.encode("utf-8", "replace").decode()
