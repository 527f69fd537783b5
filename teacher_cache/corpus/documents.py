"""What readers of a corpus give and rows are cut from: a document, the cursor at which it is found, its tokens."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache.corpus.messages import Conversation, conversation_of
from teacher_cache.settings import CorpusSettings

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A document's text or conversation, and a name that is the same each time the corpus is read."""

    id: str
    text: str
    conversation: Conversation | None = None


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
class Marks:
    """What is known of each token of a conversation: counted (n,) bool, whether it is a label; roles (n,) uint8, codes
    of `format.arrays.ROLES`.
    """

    counted: NDArray[np.bool_]
    roles: NDArray[np.uint8]


@dataclass(frozen=True)
class Tokenized:
    """A document's tokens (n,) uint32, and where the document is."""

    cursor: Cursor
    tokens: NDArray[np.uint32]
    marks: Marks | None = None
    """Of a conversation; None for text, all of which counts."""


@dataclass(frozen=True)
class RowEnd:
    """Where the next row begins: after `used` tokens of this document."""

    document: Tokenized
    used: int


def content_columns(settings: CorpusSettings) -> list[str]:
    """The columns that a document's content is in, all of which must be there."""
    chosen = [settings.messages_column, settings.prompt_column, settings.completion_column]
    return [name for name in chosen if name is not None] or [settings.text_column]


def columns_to_read(settings: CorpusSettings, names: list[str]) -> list[str]:
    """Those of the columns `names` that make a document."""
    beside = [settings.id_column, *([settings.tools_column] if settings.has_conversations else [])]
    wanted = [*content_columns(settings), *beside]
    return [name for name in dict.fromkeys(wanted) if name in names]


def require_column(settings: CorpusSettings, names: list[str], where: str) -> None:
    """Raise `UserError` unless the columns that documents are in are among the columns' `names`."""
    for column in content_columns(settings):
        if column not in names:
            options = ("messages_column", "prompt_column", "completion_column")
            option = next((name for name in options if getattr(settings, name) == column), "text_column")
            raise UserError(f"{where}: no column {column!r}; set corpus.{option} to one it has: {', '.join(names)}")


def content_of(record: Mapping[str, object], settings: CorpusSettings) -> object:
    """What `make_document` takes of a record: the text, or all of it where conversations are asked for."""
    return record if settings.has_conversations else record.get(settings.text_column)


def make_document(content: object, name: object, settings: CorpusSettings, *, place: str, where: str) -> Document:
    """The document in a record, of which `content` is what `content_of` gives; null counts as empty text.

    `place` is its name if the record gives none; `where`, the file, begins every message. Raises `UserError` if it is
    not valid text, or no conversation where one is asked for.
    """
    own_name = _readable(place if name is None else str(name))
    if settings.has_conversations:
        assert isinstance(content, Mapping)
        conversation = conversation_of(content, settings, f"{where}: {place}" if place not in where else where)
        _require_whole_characters(conversation, where, place)
        return Document(own_name, "", conversation)
    if not isinstance(content, str | None):
        raise UserError(
            f"{where}: {settings.text_column!r} of {place} is a {type(content).__name__}, not text; "
            "set corpus.text_column to a column of text"
        )
    found = SURROGATE.search(content or "")
    if found is not None:
        raise UserError(
            f"{where}: {settings.text_column!r} of {place} has half a surrogate pair at character {found.start()}, "
            "which is no text; replace it by U+FFFD, or remove the document"
        )
    return Document(own_name, content or "")


def _require_whole_characters(conversation: Conversation, where: str, place: str) -> None:
    whole = [conversation.plain, conversation.messages, conversation.tools]
    if SURROGATE.search(json.dumps(whole, ensure_ascii=False, default=str)):
        raise UserError(
            f"{where}: the conversation {place} has half a surrogate pair, which is no text; replace it by U+FFFD, or "
            "remove the conversation"
        )


def _readable(name: str) -> str:
    """The name, with `?` for each half of a surrogate pair, which can be neither stored nor printed."""
    return name.encode("utf-8", "replace").decode()
