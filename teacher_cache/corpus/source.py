"""A corpus: the documents of a Hub data set or of local Parquet, JSONL or text files, in a fixed order."""

import glob
import hashlib
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from delta_common.errors import UserError
from teacher_cache.corpus.documents import BEGINNING, Cursor, Document, Placed, Reader
from teacher_cache.corpus.files import FileFormat, file_reader
from teacher_cache.corpus.hub import hub_reader, hub_revision
from teacher_cache.corpus.retries import with_retries
from teacher_cache.settings import CorpusSettings

Format = FileFormat | Literal["hub"]
FORMATS: dict[str, Format] = {"parquet": "parquet", "jsonl": "jsonl", "text": "text", "hub": "hub"}

ENDINGS: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".json.gz": "jsonl",
    ".json.zst": "jsonl",
    ".txt": "text",
}


class Corpus:
    """The documents that the settings name. Its files are looked up once, at the first use."""

    def __init__(self, settings: CorpusSettings) -> None:
        self._settings = settings

    def documents(self, start: Cursor = BEGINNING) -> Iterator[Placed]:
        """Documents from `start` on with their cursors, in the corpus' own order; files in the order of their names.

        Documents without text are among them. A dropped connection is retried, see `retries`. Raises `UserError` naming
        the file or the option if the source, a column, a row or a line is at fault.
        """
        most = self._settings.max_documents
        documents = with_retries(self._reader.read, start, remote=_format_of(self._settings) == "hub")
        return islice(documents, None if most is None else max(0, most - start.document))

    @property
    def seeks(self) -> bool:
        """Whether beginning at a cursor costs next to nothing."""
        return self._reader.seeks

    @cached_property
    def _reader(self) -> Reader:
        kind = _format_of(self._settings)
        if kind == "hub":
            return hub_reader(self._settings)
        return file_reader([str(file) for file in _local_files(self._settings)], kind, self._settings)


def iter_documents(settings: CorpusSettings) -> Iterator[Document]:
    """All documents of the corpus, as `Corpus.documents` gives them."""
    return (document for _, document in Corpus(settings).documents())


def describe_corpus(settings: CorpusSettings, template_sha256: str | None = None) -> dict[str, Any]:
    """What the manifest says of the corpus: what was read, in which order, and a digest of each local file.

    Local files are named without their folder, so the corpus may move. `template_sha256` is the digest of the chat
    template that renders conversations.
    """
    described: dict[str, object] = {
        **_columns(settings, template_sha256),
        "max_documents": settings.max_documents,
        "special_tokens": settings.special_tokens,
    }
    if _format_of(settings) == "hub":
        hub = {"source": settings.source, "subset": settings.subset, "split": settings.split}
        return {**hub, "revision": hub_revision(settings), "order": "the stream's own", **described}
    files = [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in _local_files(settings)]
    return {"source": Path(settings.source).name, "files": files, "order": "files by name, rows as stored", **described}


def _columns(settings: CorpusSettings, template_sha256: str | None) -> dict[str, object]:
    """What a document is made of."""
    if not settings.has_conversations:
        return {"text_column": settings.text_column}
    names = ("messages_column", "prompt_column", "completion_column", "tools_column")
    chosen = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    origin = "tokenizer" if settings.chat_template is None else "file"
    return {**chosen, "chat_template": {"from": origin, "sha256": template_sha256}}


def _format_of(settings: CorpusSettings) -> Format:
    if settings.format in FORMATS:
        return FORMATS[settings.format]
    if settings.format != "auto":
        raise UserError(f"corpus.format {settings.format}: must be auto, {', '.join(FORMATS)}")
    local = _matching_files(settings.source)
    if not local and _path(settings.source).is_dir():
        raise UserError(
            f"corpus.source {settings.source}: no file of that folder ends in {', '.join(ENDINGS)}; check the path"
        )
    if not local:
        looks_local = (
            settings.source.count("/") > 1 or settings.source.startswith((".", "/", "~")) or "*" in settings.source
        )
        if looks_local or _ending(Path(settings.source)) is not None:
            raise UserError(f"corpus.source {settings.source}: no such file, folder or glob; check the path")
        return "hub"
    kinds = {kind for kind in map(_ending, local) if kind is not None}
    if len(kinds) != 1:
        found = ", ".join(sorted(kinds)) or f"none of {', '.join(ENDINGS)}"
        raise UserError(
            f"corpus.source {settings.source}: expected files of one format, found {found}; set corpus.format"
        )
    return kinds.pop()


def _local_files(settings: CorpusSettings) -> list[Path]:
    kind = _format_of(settings)
    whole_folder = _path(settings.source).is_dir()
    files = [f for f in _matching_files(settings.source) if not whole_folder or _ending(f) == kind]
    if not files:
        raise UserError(f"corpus.source {settings.source}: no {kind} file there; check the path or corpus.format")
    return files


def _matching_files(source: str) -> list[Path]:
    path = _path(source)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return sorted(f for f in path.rglob("*") if _ending(f) is not None and not _hidden(f, path) and f.is_file())
        return sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    except OSError as error:
        raise UserError(f"corpus.source {source}: cannot be looked at ({error.strerror}); check its rights") from error


def _path(source: str) -> Path:
    return Path(source).expanduser()


def _hidden(file: Path, folder: Path) -> bool:
    """Whether the name of the file, or of a folder between it and `folder`, begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _ending(path: Path) -> FileFormat | None:
    return next((kind for ending, kind in ENDINGS.items() if path.name.lower().endswith(ending)), None)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the file") from error
