"""Reads documents of Parquet, JSONL and text files, from any document on."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import IO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from delta_common.errors import UserError
from teacher_cache.corpus.documents import (
    Cursor,
    Document,
    Placed,
    Reader,
    columns_to_read,
    content_of,
    make_document,
    require_column,
)
from teacher_cache.corpus.messages import without_nulls
from teacher_cache.settings import CorpusSettings

FileFormat = Literal["parquet", "jsonl", "text"]

PARQUET_BATCH = 256
"""Rows read at once."""
PACKED = (".gz", ".zst")
"""Endings of compressed files."""


def file_reader(files: Sequence[str], kind: FileFormat, settings: CorpusSettings) -> Reader:
    """A reader of paths or URLs; compressed files can only be read from their beginning."""
    return Reader(
        partial(read_files, files, kind, settings), seeks=not any(where.lower().endswith(PACKED) for where in files)
    )


def read_files(files: Sequence[str], kind: FileFormat, settings: CorpusSettings, start: Cursor) -> Iterator[Placed]:
    """Documents of files, given as paths or URLs, from `start` on.

    Raises `UserError` naming file and row if something cannot be read; its cause is the error that was met.
    """
    begin = start
    for number in range(start.file, len(files)):
        count = begin.document
        for cursor, document in _READERS[kind](files[number], settings, begin):
            yield cursor, document
            count = cursor.document + 1
        begin = Cursor(document=count, file=number + 1)


def read_parquet(where: str, settings: CorpusSettings, start: Cursor) -> Iterator[Placed]:
    """One document per row; row groups before `start` are not read."""
    row, cursor = start.item, start
    try:
        with _open_parquet(where) as file:
            names = file.schema_arrow.names
            require_column(settings, names, where)
            columns = columns_to_read(settings, names)
            for batch in _batches(file, columns, start.item):
                for record in _records(batch, columns, where, row):
                    content, name = content_of(record, settings), record.get(settings.id_column)
                    yield cursor, make_document(content, name, settings, place=f"{_name(where)}:{row}", where=where)
                    row += 1
                    cursor = replace(cursor, document=cursor.document + 1, item=row)
    except UserError:
        raise
    # A remote file raises whatever the HTTP library behind it raises.
    except Exception as error:
        raise UserError(
            f"{where}: not readable as Parquet from row {row} on: {reason(error)}; repair or remove the file"
        ) from error


def _batches(file: pq.ParquetFile, columns: list[str], start: int) -> Iterator[pa.RecordBatch]:
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start:
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=[group], columns=columns):
                wanted = batch.slice(max(0, start - first))
                first += batch.num_rows
                if wanted.num_rows:
                    yield wanted
        else:
            first += rows


def _records(batch: pa.RecordBatch, columns: list[str], where: str, first: int) -> Iterator[dict[str, object]]:
    """The columns of each row of a batch; `first` is the number of its first row."""
    try:
        found = [batch.column(name).to_pylist() for name in columns]
    except UnicodeDecodeError:
        places = [f"{where}: row {first + i}" for i in range(len(batch))]
        found = [[_value(batch.column(name), i, place) for i, place in enumerate(places)] for name in columns]
    for values in zip(*found, strict=True):
        yield {name: without_nulls(value) for name, value in zip(columns, values, strict=True)}


def _value(column: pa.Array, index: int, where: str) -> object:
    try:
        return column[index].as_py()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}; repair or remove the file") from error


@contextlib.contextmanager
def _open_parquet(where: str) -> Iterator[pq.ParquetFile]:
    if "://" not in where:
        with pq.ParquetFile(where) as file:
            yield file
        return
    import fsspec

    with fsspec.open(where, "rb") as remote, pq.ParquetFile(remote) as file:
        yield file


def read_jsonl(where: str, settings: CorpusSettings, start: Cursor) -> Iterator[Placed]:
    """One document per line, blank lines aside; lines before `start` are skipped without being parsed."""
    cursor = start
    try:
        with _open_lines(where) as lines:
            lines.seek(start.byte)
            for line in lines:
                if line.strip():
                    yield cursor, _json_document(line, settings, where, cursor.item + 1)
                    cursor = replace(cursor, document=cursor.document + 1)
                cursor = replace(cursor, item=cursor.item + 1, byte=cursor.byte + len(line))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where}: cannot be read: {reason(error)}; repair or remove the file") from error


def _json_document(line: bytes, settings: CorpusSettings, where: str, number: int) -> Document:
    at = f"{where}:{number}"
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{at}: not UTF-8 text: {error}; mend or remove the line") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and endless nesting
        raise UserError(f"{at}: not JSON: {reason(error)}; mend or remove the line") from error
    if not isinstance(record, dict):
        raise UserError(f"{at}: expected an object, got a {type(record).__name__}; mend or remove the line")
    require_column(settings, list(record), at)
    content, name = content_of(record, settings), record.get(settings.id_column)
    return make_document(content, name, settings, place=f"{_name(where)}:{number}", where=at)


@contextlib.contextmanager
def _open_lines(path: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    try:
        raw = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the file") from error
    with raw:
        if path.lower().endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)
        elif path.lower().endswith(".zst"):
            # Arrow's reader raises if the file is cut short; the zstandard package takes the cut for the end.
            yield _Forward(pa.CompressedInputStream(raw, "zstd"))
        else:
            yield raw


class _Forward(io.BufferedReader):
    """A stream that cannot seek: `seek`, called once and before reading, reads and drops the bytes before `target`."""

    def seek(self, target: int, _whence: int = 0) -> int:
        done = 0
        while done < target and (dropped := len(self.read(min(target - done, 2**20)))):
            done += dropped
        return done


def read_text(where: str, _settings: CorpusSettings, start: Cursor) -> Iterator[Placed]:
    """The whole file as one document."""
    try:
        with open(where, encoding="utf-8-sig") as file:
            yield start, Document(_name(where), file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not readable as UTF-8 text: {error}; repair or remove the file") from error


_READERS: dict[FileFormat, Callable[[str, CorpusSettings, Cursor], Iterator[Placed]]] = {
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "text": read_text,
}


def reason(error: Exception) -> str:
    """The first line of an error's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _name(where: str) -> str:
    return where.replace("\\", "/").rpartition("/")[2]
