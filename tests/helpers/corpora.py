"""Corpora of a few files, written and read back."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from teacher_cache.corpus.source import iter_documents
from teacher_cache.settings import CorpusSettings

TEXTS = ["first\nand its second line", "", "drittes: δ-Distillation"]


def pack(data: bytes, ending: str) -> bytes:
    """The data, compressed as files with this ending are."""
    if ending == "jsonl.zst":
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    return gzip.compress(data) if ending == "jsonl.gz" else data


def read(source: Path | str, **settings: Any) -> list[tuple[str, str]]:
    """(name, text) of every document."""
    return [(d.id, d.text) for d in iter_documents(CorpusSettings(source=str(source), **settings))]


def texts(source: Path | str, **settings: Any) -> list[str]:
    """The text of every document."""
    return [text for _, text in read(source, **settings)]


def write_parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    """Write a Parquet file of these columns."""
    pq.write_table(pa.table(columns), path, **options)
    return path


def lines(records: Iterable[Any]) -> bytes:
    """The records as JSONL."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write(path: Path, data: bytes) -> Path:
    """Write a file, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def flipped(data: bytes, index: int) -> bytes:
    """The data with all bits of one byte flipped."""
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]
