"""Which files a source means, in which order they are read, and what the manifest says of them."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.source import describe_corpus, iter_documents
from teacher_cache.settings import CorpusSettings
from tests.helpers.corpora import TEXTS, lines, read, texts, write, write_parquet


def test_a_folder_is_read_in_the_order_of_its_names_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        write_parquet(tmp_path / f"{name}.parquet", {"text": [f"{name}0", f"{name}1"]})
    write(tmp_path / "README.md", b"not a document")
    (tmp_path / "inner").mkdir()
    write_parquet(tmp_path / "inner" / "z.parquet", {"text": ["z0"]})
    assert texts(tmp_path) == ["a0", "a1", "b0", "b1", "c0", "c1", "z0"]


def test_a_glob_takes_what_it_matches_by_name(tmp_path: Path) -> None:
    for name in ("part-2", "part-1", "other"):
        write_parquet(tmp_path / f"{name}.parquet", {"text": [name]})
    assert texts(tmp_path / "part-*.parquet") == ["part-1", "part-2"]


def test_a_folder_of_text_gives_a_document_a_file(tmp_path: Path) -> None:
    for name, text in zip(("c.txt", "a.txt", "b.txt"), TEXTS, strict=True):
        write(tmp_path / name, text.encode())
    assert read(tmp_path) == [("a.txt", TEXTS[1]), ("b.txt", TEXTS[2]), ("c.txt", TEXTS[0])]


def test_a_named_format_goes_before_the_ending_and_picks_from_a_mixed_folder(tmp_path: Path) -> None:
    unusual = write(tmp_path / "lines.data", lines([{"text": "line"}]))
    write(tmp_path / "mixed" / "a.txt", b"text")
    write(tmp_path / "mixed" / "b.jsonl", lines([{"text": "line"}]))
    assert texts(unusual, format="jsonl") == ["line"]
    assert texts(tmp_path / "mixed", format="text") == ["text"]
    assert texts(tmp_path / "mixed", format="jsonl") == ["line"]


def test_max_documents_stops_across_files_and_reads_no_further(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines([{"text": "0"}, {"text": "1"}]))
    write(tmp_path / "b.jsonl", lines([{"text": "2"}]) + b"not JSON")
    assert texts(tmp_path, max_documents=1) == ["0"]
    assert texts(tmp_path, max_documents=3) == ["0", "1", "2"]


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines({"text": text} for text in TEXTS)))
    assert read(tmp_path) == read(tmp_path)


def test_the_description_has_a_digest_of_each_file_in_order(tmp_path: Path) -> None:
    contents = {name: lines([{"text": name}]) for name in ("b.jsonl", "a.jsonl")}
    for name, data in contents.items():
        write(tmp_path / "corpus" / name, data)
    described = describe_corpus(CorpusSettings(source=str(tmp_path / "corpus"), max_documents=5))
    assert described["files"] == [
        {"name": name, "bytes": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert described["source"] == "corpus"
    assert described["max_documents"] == 5
    assert described["text_column"] == "text"


def test_a_corpus_that_moves_is_described_the_same_and_one_that_changes_is_not(tmp_path: Path) -> None:
    def described(folder: str, data: bytes) -> str:
        path = write(tmp_path / folder / "a.jsonl", data)
        return json.dumps(describe_corpus(CorpusSettings(source=str(path))))

    assert described("here", b'{"text": "a"}') == described("there/deeper", b'{"text": "a"}')
    assert described("here", b'{"text": "a"}') != described("here", b'{"text": "b"}')


@pytest.mark.parametrize(
    "source", ["{}/absent.parquet", "{}/absent", "{}/*.jsonl", "./absent", "absent.jsonl.zst", "a/b/c", "absent-*"]
)
def test_a_path_that_is_not_there_is_named(tmp_path: Path, source: str) -> None:
    source = source.format(tmp_path)
    with pytest.raises(UserError) as raised:
        read(source)
    assert str(raised.value) == f"corpus.source {source}: no such file, folder or glob; check the path"


@pytest.mark.parametrize("files", [[], ["README.md", "table.csv"]])
def test_a_folder_without_documents_is_never_taken_for_a_hub_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    for name in files:
        write(tmp_path / "data" / name, b"x")
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"corpus\.source data: no file of that folder ends in \.parquet, .*\.txt"):
        read("data")


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines([{"text": "a"}]))
    write(tmp_path / "b.txt", b"b")
    with pytest.raises(UserError, match=r"expected files of one format, found jsonl, text; set corpus\.format"):
        read(tmp_path)


def test_files_of_no_known_format_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text\na\n")
    with pytest.raises(UserError, match=r"a\.csv: .* found none of \.parquet, .*; set corpus\.format"):
        read(path)


@pytest.mark.parametrize("use", [iter_documents, describe_corpus])
def test_a_format_of_which_the_folder_has_no_file_is_refused(
    tmp_path: Path, use: Callable[[CorpusSettings], Iterable[Any]]
) -> None:
    write(tmp_path / "b.txt", b"b")
    with pytest.raises(UserError, match=r"no parquet file there; check the path or corpus\.format"):
        list(use(CorpusSettings(source=str(tmp_path), format="parquet")))


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="max_documents"):
        CorpusSettings(source="a.txt", max_documents=0)
    with pytest.raises(ValueError, match="column"):
        CorpusSettings.model_validate({"source": "a.txt", "column": "text"})


def test_hidden_files_and_folders_are_no_documents(tmp_path: Path) -> None:
    for place in ("a.txt", ".hidden.txt", ".ipynb_checkpoints/a.txt", "deep/.git/b.txt", "deep/b.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    assert texts(tmp_path) == ["a.txt", "deep/b.txt"]


@pytest.mark.parametrize("name", ["c4.json.gz", "UP.JSONL.GZ"])
def test_packed_lines_go_by_other_names_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    assert texts(tmp_path) == texts(tmp_path, format="jsonl") == ["packed"]


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"corpus.format csv: must be auto, parquet, jsonl, text, hub"):
        texts(tmp_path, format="csv")


def test_the_home_folder_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert texts(Path("~/a.txt")) == ["at home"]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a.txt: cannot be opened \(Permission denied\)"):
        describe_corpus(CorpusSettings(source=str(tmp_path)))
