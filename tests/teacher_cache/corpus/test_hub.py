"""Hub data sets through the real datasets package, from folders that are laid out like repositories."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_common.errors import UserError
from teacher_cache.corpus import files as corpus_files
from teacher_cache.corpus import retries
from teacher_cache.corpus.documents import Cursor
from teacher_cache.corpus.source import Corpus, describe_corpus, iter_documents
from teacher_cache.settings import CorpusSettings

FILES, ROWS = 3, 40
SUBSET = "sample-10BT"


def write_card(root: Path, pattern: str) -> Path:
    files = {"split": "train", "path": pattern}
    root.mkdir(exist_ok=True)
    (root / "README.md").write_text(
        f"---\n{json.dumps({'configs': [{'config_name': SUBSET, 'data_files': [files]}]})}\n---\n"
    )
    return root


def text(file: int, row: int) -> str:
    return f"text {row} of file {file}"


@pytest.fixture
def fineweb(tmp_path: Path) -> Path:
    """Like FineWeb: Parquet of small row groups, several files a subset, which the card names by a pattern."""
    root = write_card(tmp_path / "fineweb", "sample/10BT/*")
    (root / "sample" / "10BT").mkdir(parents=True)
    for file in range(FILES):
        texts = [text(file, row) for row in range(ROWS)]
        table = pa.table({"text": texts, "id": [f"{file}-{row}" for row in range(ROWS)], "score": [0.5] * ROWS})
        pq.write_table(table, root / "sample" / "10BT" / f"{file:03d}_00000.parquet", row_group_size=7)
    return root


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    root = write_card(tmp_path / "lines", "*.jsonl")
    for file in range(FILES):
        records = ({"text": text(file, row)} for row in range(ROWS))
        (root / f"{file}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def settings(root: Path | str, **more: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"source": str(root), "format": "hub", "subset": SUBSET, **more})


def as_stored(place: Cursor) -> Cursor:
    return Cursor(**json.loads(json.dumps(asdict(place))))


@pytest.mark.parametrize("kind", ["fineweb", "lines"])
def test_documents_are_those_of_the_packages_own_stream(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    stream = datasets.load_dataset(str(root), SUBSET, split="train", streaming=True)
    expected = [record["text"] for record in stream]
    assert len(expected) == FILES * ROWS
    assert [document.text for document in iter_documents(settings(root))] == expected
    assert [document.text for document in iter_documents(settings(root, max_documents=50))] == expected[:50]


@pytest.mark.parametrize("kind", ["fineweb", "lines"])
def test_reading_begins_anywhere_also_where_a_reading_that_began_somewhere_has_been(
    kind: str, request: pytest.FixtureRequest
) -> None:
    corpus = Corpus(settings(request.getfixturevalue(kind)))
    expected = [document for _, document in corpus.documents()]
    starts = [0, 1, 6, 7, 39, 40, 41, 79, 80, 119]
    for first, second in itertools.combinations_with_replacement(starts, 2):
        place = next(itertools.islice(corpus.documents(), first, None))[0]
        again = next(itertools.islice(corpus.documents(as_stored(place)), second - first, None))[0]
        assert again.document == second
        assert [document for _, document in corpus.documents(as_stored(again))] == expected[second:]


def test_row_groups_before_the_beginning_are_not_read(fineweb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(settings(fineweb))
    place = next(itertools.islice(corpus.documents(), 2 * ROWS + 20, None))[0]
    read: list[list[int]] = []
    opened: list[str] = []

    class Watched(pq.ParquetFile):
        def __init__(self, where: str) -> None:
            opened.append(Path(where).name)
            super().__init__(where)

        def iter_batches(self, *positional: Any, row_groups: list[int], **named: Any) -> Iterator[Any]:
            read.append(row_groups)
            return super().iter_batches(*positional, row_groups=row_groups, **named)

    monkeypatch.setattr(corpus_files.pq, "ParquetFile", Watched)
    assert next(corpus.documents(place))[1].text == text(2, 20)
    assert opened == ["002_00000.parquet"]
    assert read == [[2]]


@pytest.mark.parametrize("kind", ["fineweb", "lines"])
def test_columns_and_splits_that_are_not_there_are_named(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    with pytest.raises(UserError, match=r"no column 'body'; set corpus\.text_column to one it has: text"):
        list(iter_documents(settings(root, text_column="body")))
    with pytest.raises(UserError, match=r"corpus\.split|corpus\.s.* cannot be read: .*corpus\.split"):
        list(iter_documents(settings(root, split="validation")))


class HttpError(Exception):
    """Like httpx's, no OSError and no ValueError."""


def without_a_hub(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_positional: Any, **_named: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("offline\nsecond line"), "offline"),
        (ValueError("Unknown split"), "Unknown split"),
        (HttpError("[Errno 111] Connection refused"), "Connection refused"),
        (TimeoutError(), "TimeoutError"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_a_hub_data_set_without_a_hub_is_one_line_with_the_reason_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    without_a_hub(monkeypatch, error)
    with pytest.raises(UserError, match=rf"^corpus\.source owner/name: .*{reason}; .*or give a local path$"):
        list(iter_documents(CorpusSettings(source="owner/name")))
    with pytest.raises(UserError, match=rf"^corpus\.source owner/name: no such local path, .*{reason}; check the path"):
        describe_corpus(CorpusSettings(source="owner/name"))


def test_a_hub_data_set_is_asked_for_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*positional: Any, **named: Any) -> Any:
        asked.append((positional, named))
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    with pytest.raises(UserError, match="offline"):
        list(iter_documents(CorpusSettings(source="owner/name", subset="small", revision="abc")))
    assert asked == [(("owner/name", "small"), {"revision": "abc"})]


def test_a_hub_data_set_is_described_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        sha = "0123abc"

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _api, _name, revision: Info)
    described = describe_corpus(CorpusSettings(source="owner/name", subset="small", revision="main"))
    assert described["source"] == "owner/name"
    assert described["revision"] == "0123abc"
    assert described["subset"] == "small"
    assert "files" not in described


@pytest.mark.parametrize("kind", ["fineweb", "lines"])
def test_a_connection_that_drops_again_and_again_costs_no_document_and_doubles_none(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reading breaks off after a few documents, as HTTP clients break off."""
    root = request.getfixturevalue(kind)
    expected = list(iter_documents(settings(root)))
    flaky, pauses = [0], list[float]()
    module = corpus_files if kind == "fineweb" else __import__("teacher_cache.corpus.hub", fromlist=["_"])
    make = module.make_document

    def dropping(*positional: Any, **named: Any) -> Any:
        flaky[0] += 1
        if flaky[0] % 11 == 0:
            raise HttpError("peer closed connection")
        return make(*positional, **named)

    monkeypatch.setattr(module, "make_document", dropping)
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    assert list(iter_documents(settings(root))) == expected
    assert flaky[0] > len(expected) * 1.1
    assert set(pauses) == {retries.PAUSES[0]}
