"""`python tools/make_demo_corpus.py OUT_DIR`, as the demo calls it."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teacher_cache.corpus.source import iter_documents
from teacher_cache.settings import CorpusSettings
from tests.helpers import ROOT

SCRIPT = ROOT / "tools" / "make_demo_corpus.py"
PARTS = ["train", "heldout"]

FINEWEB = {
    "text": pa.string(),
    "id": pa.string(),
    "dump": pa.string(),
    "url": pa.string(),
    "date": pa.string(),
    "file_path": pa.string(),
    "language": pa.string(),
    "language_score": pa.float64(),
    "token_count": pa.int64(),
}


def make(out: Path) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def column(corpus: Path, part: str, name: str) -> list[str]:
    values: list[str] = pq.read_table(corpus / f"{part}.parquet").column(name).to_pylist()
    return values


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "not" / "yet" / "there"
    make(out)
    return out


@pytest.mark.parametrize("part", PARTS)
def test_the_columns_are_those_of_fineweb(corpus: Path, part: str) -> None:
    schema = pq.read_schema(corpus / f"{part}.parquet")
    assert list(zip(schema.names, schema.types, strict=True)) == list(FINEWEB.items())


def test_two_runs_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    make(tmp_path)
    for part in PARTS:
        assert (tmp_path / f"{part}.parquet").read_bytes() == (corpus / f"{part}.parquet").read_bytes()


@pytest.mark.parametrize("name", ["id", "url", "text"])
def test_no_document_is_in_both_parts_or_twice_in_one(corpus: Path, name: str) -> None:
    values = [value for part in PARTS for value in column(corpus, part, name)]
    assert len(set(values)) == len(values)


def test_the_corpus_is_large_enough_and_a_tenth_of_it_held_out(corpus: Path) -> None:
    texts = {part: column(corpus, part, "text") for part in PARTS}
    assert sum(len(text) for part in PARTS for text in texts[part]) > 1_500_000
    documents = sum(len(texts[part]) for part in PARTS)
    assert 0.06 < len(texts["heldout"]) / documents < 0.14


@pytest.mark.parametrize("part", PARTS)
def test_every_document_has_text_a_name_and_its_words_counted(corpus: Path, part: str) -> None:
    records = pq.read_table(corpus / f"{part}.parquet").to_pylist()
    for record in records:
        assert len(record["text"].strip()) > 100, record["url"]
        assert record["token_count"] == len(record["text"].split())
        assert record["language"] == "en"
        assert None not in record.values()


@pytest.mark.parametrize("part", PARTS)
def test_the_corpus_reads_as_a_corpus(corpus: Path, part: str) -> None:
    documents = list(iter_documents(CorpusSettings(source=str(corpus / f"{part}.parquet"))))
    assert [d.id for d in documents] == column(corpus, part, "id")
    assert [d.text for d in documents] == column(corpus, part, "text")
