"""Documents in a fixed order with stable names: Hub data sets (streamed), Parquet, JSONL, text."""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cli_common.errors import UserError
from teacher_cache.corpus_settings import CorpusSettings

Format = Literal["parquet", "jsonl", "text", "hub"]

PARQUET_BATCH = 256

ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".txt": "text",
}


@dataclass(frozen=True)
class Document:
    """A document's text, and a name that stays the same however often the corpus is read."""

    id: str
    text: str


def iter_documents(settings: CorpusSettings) -> Iterator[Document]:
    """Documents in the corpus' own order; files in the order of their names. Empty ones are passed on.

    Raises `UserError` naming the file or option when the source, a column or a line is at fault.
    """
    return islice(_documents(settings), settings.max_documents)


def describe_corpus(settings: CorpusSettings) -> dict[str, Any]:
    """The corpus' provenance for the manifest: what was read, in which order, with a digest of each local file.

    Local files are named without their folder, so that a corpus may move.
    """
    described: dict[str, Any] = {"text_column": settings.text_column, "max_documents": settings.max_documents}
    if _format_of(settings) == "hub":
        hub = {"source": settings.source, "subset": settings.subset, "split": settings.split}
        return {**hub, "revision": _hub_revision(settings), "order": "the stream's own", **described}
    files = [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in _local_files(settings)]
    return {"source": Path(settings.source).name, "files": files, "order": "files by name, rows as stored", **described}


def _documents(settings: CorpusSettings) -> Iterator[Document]:
    kind = _format_of(settings)
    if kind == "hub":
        yield from _hub_documents(settings)
        return
    read = _READERS[kind]
    for path in _local_files(settings):
        yield from read(path, settings)


def _format_of(settings: CorpusSettings) -> Format:
    if settings.format != "auto":
        return settings.format
    local = _matching_files(settings.source)
    if not local and Path(settings.source).is_dir():
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
    whole_folder = Path(settings.source).is_dir()
    files = [f for f in _matching_files(settings.source) if not whole_folder or _ending(f) == kind]
    if not files:
        raise UserError(f"corpus.source {settings.source}: no {kind} file there; check the path or corpus.format")
    return files


def _matching_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(f for f in path.rglob("*") if f.is_file() and _ending(f) is not None)
    return sorted(Path(match) for match in glob.glob(source, recursive=True) if Path(match).is_file())


def _ending(path: Path) -> Format | None:
    return next((kind for ending, kind in ENDINGS.items() if path.name.endswith(ending)), None)


def _parquet_documents(path: Path, settings: CorpusSettings) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _require_column(settings, names, path)
        columns = [settings.text_column, *([settings.id_column] if settings.id_column in names else [])]
        row = 0
        for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
            for record in batch.to_pylist():
                yield _document(record, settings, place=f"{path.name}:{row}", where=path)
                row += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}; repair or remove the file") from error


def _jsonl_documents(path: Path, settings: CorpusSettings) -> Iterator[Document]:
    with _open_text(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_document(line, settings, path, number)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read: {error}; repair or remove the file") from error


def _json_document(line: str, settings: CorpusSettings, path: Path, number: int) -> Document:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not JSON: {error}; mend or remove the line") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}:{number}: expected an object, got a {type(record).__name__}; mend or remove the line")
    _require_column(settings, list(record), f"{path}:{number}")
    return _document(record, settings, place=f"{path.name}:{number}", where=f"{path}:{number}")


def _text_documents(path: Path, _settings: CorpusSettings) -> Iterator[Document]:
    try:
        yield Document(path.name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text: {error}; repair or remove the file") from error


_READERS: dict[str, Callable[[Path, CorpusSettings], Iterator[Document]]] = {
    "parquet": _parquet_documents,
    "jsonl": _jsonl_documents,
    "text": _text_documents,
}


def _hub_documents(settings: CorpusSettings) -> Iterator[Document]:
    # datasets takes a second to import and local corpora never need it.
    import datasets

    try:
        stream = datasets.load_dataset(
            settings.source, settings.subset, split=settings.split, revision=settings.revision, streaming=True
        )
        for number, record in enumerate(stream):
            if number == 0:
                _require_column(settings, list(record), settings.source)
            yield _document(record, settings, place=f"{settings.split}:{number}", where=settings.source)
    except UserError:
        raise
    except Exception as error:  # the clients let the errors of whichever HTTP library they use through
        raise UserError(
            f"corpus.source {settings.source}: the Hub data set cannot be read: {_reason(error)}; "
            "check its name, corpus.subset and corpus.split, or give a local path"
        ) from error


def _hub_revision(settings: CorpusSettings) -> str | None:
    """The commit a Hub data set stands at, so that a later build notices when it has moved on."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(settings.source, revision=settings.revision).sha
    except Exception as error:  # the client lets the errors of whichever HTTP library it uses through
        raise UserError(
            f"corpus.source {settings.source}: no such local path, and the Hub cannot be asked: {_reason(error)}; "
            "check the path or the connection"
        ) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _require_column(settings: CorpusSettings, names: list[str], where: Path | str) -> None:
    if settings.text_column not in names:
        raise UserError(
            f"{where}: no column {settings.text_column!r}; set corpus.text_column to one it has: {', '.join(names)}"
        )


def _document(record: dict[str, Any], settings: CorpusSettings, *, place: str, where: Path | str) -> Document:
    text = record[settings.text_column]
    if not isinstance(text, str):
        raise UserError(
            f"{where}: {settings.text_column!r} of {place} is a {type(text).__name__}, not text; "
            "set corpus.text_column to a column of text"
        )
    name = record.get(settings.id_column)
    return Document(place if name is None else str(name), text)


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the file") from error
    with raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            # Arrow's reader raises where the file is cut short; zstandard's would end there as if that were all.
            stream = pa.CompressedInputStream(raw, "zstd")
        yield io.TextIOWrapper(stream, encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
