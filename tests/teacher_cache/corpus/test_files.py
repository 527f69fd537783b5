"""Parquet, JSONL and text files: their documents and names, from any of them on; damage is named with its place."""

import gzip
import itertools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_common.errors import UserError
from teacher_cache.corpus.source import Corpus, iter_documents
from teacher_cache.settings import CorpusSettings
from tests.helpers.corpora import TEXTS, flipped, lines, pack, read, texts, write, write_parquet

PACKED = ["jsonl.gz", "jsonl.zst"]


def test_a_parquet_file_gives_its_rows_by_their_ids(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"id": ["x", "y", "z"], "score": [1.0, 2.0, 3.0], "text": TEXTS})
    assert read(path) == list(zip("xyz", TEXTS, strict=True))


def test_a_parquet_file_of_many_batches_is_read_in_order(tmp_path: Path) -> None:
    expected = [f"text {i}" for i in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": expected}, row_group_size=300)
    assert read(path) == [(f"a.parquet:{i}", text) for i, text in enumerate(expected)]


def test_another_column_of_text_and_of_ids_may_be_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"body": TEXTS, "key": [7, None, 9], "text": ["no"] * 3})
    named = read(path, text_column="body", id_column="key")
    assert named == list(zip(["7", "a.parquet:1", "9"], TEXTS, strict=True))


@pytest.mark.parametrize("ending", ["jsonl", *PACKED])
def test_jsonl_gives_a_document_a_line_packed_or_not(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", pack(lines({"text": text} for text in TEXTS), ending))
    assert read(path) == [(f"a.{ending}:{i}", text) for i, text in enumerate(TEXTS, start=1)]


@pytest.mark.parametrize("ending", PACKED)
def test_packed_files_that_were_joined_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    joined = b"".join(pack(lines([{"text": text}]), ending) for text in TEXTS)
    assert texts(write(tmp_path / f"a.{ending}", joined)) == TEXTS


def test_blank_lines_of_jsonl_are_no_documents_and_move_no_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n  \n{"text": "two", "id": "named"}\n{"text": "three"}')
    assert read(path) == [("a.jsonl:1", "one"), ("named", "two"), ("a.jsonl:5", "three")]


def test_line_separators_within_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c"
    assert texts(write(tmp_path / "a.jsonl", lines([{"text": text}]))) == [text]


def test_an_absent_text_column_names_those_there_are(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", {"body": ["a"], "url": ["b"]})
    objects = write(tmp_path / "b.jsonl", lines([{"text": "a"}, {"body": "a", "url": "b"}]))
    remedy = r"no column 'text'; set corpus\.text_column to one it has: body, url"
    with pytest.raises(UserError, match=rf"a\.parquet: {remedy}"):
        read(table)
    with pytest.raises(UserError, match=rf"b\.jsonl:2: {remedy}"):
        read(objects)


@pytest.mark.parametrize(("value", "name"), [(3, "int"), (["a"], "list")])
def test_a_value_that_is_no_text_is_named_with_its_place(tmp_path: Path, value: Any, name: str) -> None:
    table = write_parquet(tmp_path / "a.parquet", {"text": [value, value]})
    objects = write(tmp_path / "b.jsonl", lines([{"text": "fine"}, {"text": value}]))
    with pytest.raises(UserError, match=rf"'text' of a\.parquet:0 is a {name}, not text; set corpus\.text_column"):
        read(table)
    with pytest.raises(UserError, match=rf"'text' of b\.jsonl:2 is a {name}, not text; set corpus\.text_column"):
        read(objects)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"a\.jsonl:2: not JSON: .*; mend or remove the line"),
        (b"plain words", r"a\.jsonl:2: not JSON"),
        (b'["text"]', r"a\.jsonl:2: expected an object, got a list"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not UTF-8 text: .*utf-8.*; mend or remove the line"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_file_cut_anywhere_is_refused(tmp_path: Path, ending: str) -> None:
    packed = pack(lines({"text": f"document {i}"} for i in range(40)), ending)
    for length in range(1, len(packed)):
        path = write(tmp_path / f"a.{ending}", packed[:length])
        with pytest.raises(UserError, match=rf"a\.{ending}"):
            read(path)


@pytest.mark.parametrize("ending", PACKED)
def test_a_packed_file_with_a_flipped_byte_ends_in_no_other_error(tmp_path: Path, ending: str) -> None:
    packed = pack(lines({"text": f"document {i}"} for i in range(40)), ending)
    refused = 0
    for place in range(len(packed)):
        path = write(tmp_path / f"a.{ending}", flipped(packed, place))
        try:
            read(path)
        except UserError:
            refused += 1
    assert refused > len(packed) / 4


@pytest.mark.parametrize("ending", PACKED)
def test_a_file_that_only_claims_to_be_packed_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", lines([{"text": "plain"}]))
    with pytest.raises(UserError, match=rf"a\.{ending}: cannot be read: .*; repair or remove the file"):
        read(path)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", {"text": [f"document {i}" for i in range(500)]}).read_bytes()
    for data in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], flipped(whole, 20), b"plain words" * 9):
        with pytest.raises(UserError, match=r"a\.parquet: not readable as Parquet from row 0 on: .*; repair or remove"):
            read(write(tmp_path / "a.parquet", data))


def test_a_damaged_row_group_is_named_by_its_first_row_when_reading_gets_there(tmp_path: Path) -> None:
    expected = [f"document {i} " + "x" * 50 for i in range(40)]
    path = write_parquet(tmp_path / "a.parquet", {"text": expected}, row_group_size=10, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start, size = column.data_page_offset, column.total_compressed_size
    damaged = bytearray(path.read_bytes())
    damaged[start + 30 : start + size] = bytes(size - 30)
    path.write_bytes(damaged)
    documents = iter_documents(CorpusSettings(source=str(path)))
    assert [document.text for document in islice(documents, 20)] == expected[:20]
    with pytest.raises(UserError, match=r"a\.parquet: not readable as Parquet from row 20 on: .*; repair or remove"):
        next(documents)


def test_null_is_a_document_without_text(tmp_path: Path) -> None:
    table = write_parquet(tmp_path / "a.parquet", {"text": ["one", None, "three"]})
    objects = write(tmp_path / "b.jsonl", lines([{"text": "one"}, {"text": None}, {"text": "three"}]))
    assert texts(table) == texts(objects) == ["one", "", "three"]


def test_a_parquet_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["fine", "damaged"]}, compression="none")
    path.write_bytes(path.read_bytes().replace(b"damaged", b"dam\xff\xff\xff\xff"))
    with pytest.raises(UserError, match=r"a\.parquet: row 1: not UTF-8 text: .*; repair or remove the file"):
        read(path)


def test_a_text_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.txt: not readable as UTF-8 text: .*; repair or remove the file"):
        read(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "first"}\n{"text": "second"}\n')
    assert texts(tmp_path / "a.txt") == ["hello"]
    assert texts(tmp_path / "b.jsonl") == ["first", "second"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "bad \\ud83d here"}', "half a surrogate pair at character 4, which is no text"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"text": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON: "),
    ],
)
def test_a_line_that_is_no_document_is_named(line: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a.jsonl:2: .*{said}"):
        texts(tmp_path / "a.jsonl")


def test_half_a_surrogate_in_a_name_does_not_stop_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok \\ud83d\\ude00", "id": "\\ud83d"}\n')
    (document,) = iter_documents(CorpusSettings(source=str(tmp_path / "a.jsonl")))
    assert (document.text, document.id) == ("ok 😀", "?")


files_of_texts = st.lists(st.lists(st.none() | st.text(max_size=8), max_size=6), min_size=1, max_size=4)


endings = st.sampled_from(["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "txt"])


def write_files(folder: Path, texts: list[list[str | None]], ending: str, group: int) -> None:
    for number, inside in enumerate(texts):
        path = folder / f"{number}.{ending}"
        blank = "\n" * (number % 2)
        data = "".join(blank + json.dumps({"text": text}) + "\n" for text in inside).encode()
        if ending == "parquet":
            pq.write_table(pa.table({"text": pa.array(inside, pa.string())}), path, row_group_size=group)
        elif ending == "txt":
            path.write_text("".join(text or "" for text in inside), encoding="utf-8", newline="")
        elif ending == "jsonl.zst":
            path.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
        else:
            path.write_bytes(gzip.compress(data) if ending == "jsonl.gz" else data)


@settings(deadline=None)
@given(texts=files_of_texts, ending=endings, group=st.integers(1, 4), most=st.none() | st.integers(1, 9))
def test_reading_from_a_documents_cursor_gives_it_and_all_behind(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str | None]], ending: str, group: int, most: int | None
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_files(folder, texts, ending, group)
    corpus = Corpus(CorpusSettings(source=str(folder), max_documents=most))
    placed = list(corpus.documents())
    assert [cursor.document for cursor, _ in placed] == list(range(len(placed)))
    if ending != "txt":
        assert [document.text for _, document in placed] == [text or "" for text in itertools.chain(*texts)][:most]
    for cursor, _ in placed:
        assert list(corpus.documents(cursor)) == placed[cursor.document :]
