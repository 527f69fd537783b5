import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_common.errors import UserError
from teacher_cache.corpus.source import describe_corpus, iter_documents
from teacher_cache.settings import CorpusSettings

TEXTS = ["first\nand its second line", "", "drittes: δ-Distillation"]
PACKED = ["jsonl.gz", "jsonl.zst"]


def pack(data: bytes, ending: str) -> bytes:
    if ending == "jsonl.zst":
        return bytes(pa.compress(data, codec="zstd", asbytes=True))
    return gzip.compress(data) if ending == "jsonl.gz" else data


def read(source: Path | str, **settings: Any) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in iter_documents(CorpusSettings(source=str(source), **settings))]


def texts(source: Path | str, **settings: Any) -> list[str]:
    return [text for _, text in read(source, **settings)]


def write_parquet(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def lines(records: Iterable[Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


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


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


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


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="max_documents"):
        CorpusSettings(source="a.txt", max_documents=0)
    with pytest.raises(ValueError, match="column"):
        CorpusSettings.model_validate({"source": "a.txt", "column": "text"})


def texts_of(source: Path, **fields: Any) -> list[str]:
    return [document.text for document in iter_documents(CorpusSettings(source=str(source), **fields))]


def test_hidden_files_and_folders_are_no_documents(tmp_path: Path) -> None:
    for place in ("a.txt", ".hidden.txt", ".ipynb_checkpoints/a.txt", "deep/.git/b.txt", "deep/b.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    assert texts_of(tmp_path) == ["a.txt", "deep/b.txt"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "first"}\n{"text": "second"}\n')
    assert texts_of(tmp_path / "a.txt") == ["hello"]
    assert texts_of(tmp_path / "b.jsonl") == ["first", "second"]


@pytest.mark.parametrize("name", ["c4.json.gz", "UP.JSONL.GZ"])
def test_packed_lines_go_by_other_names_too(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    assert texts_of(tmp_path) == texts_of(tmp_path, format="jsonl") == ["packed"]


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
        texts_of(tmp_path / "a.jsonl")


def test_half_a_surrogate_in_a_name_does_not_stop_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok \\ud83d\\ude00", "id": "\\ud83d"}\n')
    (document,) = iter_documents(CorpusSettings(source=str(tmp_path / "a.jsonl")))
    assert (document.text, document.id) == ("ok 😀", "?")


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"corpus.format csv: must be auto, parquet, jsonl, text, hub"):
        texts_of(tmp_path, format="csv")


def test_the_home_folder_may_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert texts_of(Path("~/a.txt")) == ["at home"]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a.txt: cannot be opened \(Permission denied\)"):
        describe_corpus(CorpusSettings(source=str(tmp_path)))
