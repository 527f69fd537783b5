"""Rows are the same whoever begins where, with or without bookmarks, sound or not; and little is read to begin."""

import gzip
import json
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.corpus import files, retries
from teacher_cache.corpus.bookmarks import Bookmarks, bookmark_key
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.corpus.rows import TokenRow
from teacher_cache.format.keys import CORPUS_FOLDER
from teacher_cache.format.manifest import Manifest, TokenizerIdentity
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import verify
from tests.helpers.damaged_bookmarks import MISLEADING, UNSOUND
from tests.helpers.tokenizers_for_tests import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()
IDENTITY = TokenizerIdentity(sha256="0", vocab_size=257, eos_token_id=EOS, pad_token_id=EOS, has_files=True)
A_SHARD = 4


def write_corpus(folder: Path, texts: list[str | None], ending: str = "parquet", group: int = 8) -> Path:
    """In two files, so that a row may cross their border."""
    folder.mkdir(exist_ok=True)
    for number, inside in enumerate((texts[: len(texts) // 2], texts[len(texts) // 2 :])):
        if ending == "parquet":
            table = pa.table({"text": pa.array(inside, pa.string())})
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=group)
        else:
            (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in inside))
    return folder


def words(documents: int, seed: int = 0) -> list[str | None]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abcdef ", k=chance.randint(0, 60))) for _ in range(documents)]


def asked(source: Path, seq_len: int = 16, mode: str = "packed", **corpus: Any) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": "none"},
            "corpus": {"source": str(source), **corpus},
            "rows": {"seq_len": seq_len, "mode": mode},
        }
    )


def twin(texts: list[str | None], seq_len: int, mode: str) -> list[list[int]]:
    """Labels and first tokens of every row, the simple way: all documents, all tokens, cut up."""
    documents = [[*TOKENIZER(text)["input_ids"], EOS] for text in texts if text]
    if mode == "document":
        return [document[: seq_len + 1] for document in documents]
    stream = [token for document in documents for token in document]
    return [stream[first : first + seq_len + 1] for first in range(0, len(stream) - 1, seq_len)]


def tokens(rows: list[TokenRow]) -> list[list[int]]:
    return [row.tokens[: 1 + row.loss_mask.sum()].tolist() for row in rows]


def same(rows: list[TokenRow], expected: list[TokenRow]) -> bool:
    return len(rows) == len(expected) and all(
        np.array_equal(array, vars(other)[name])
        for row, other in zip(rows, expected, strict=True)
        for name, array in vars(row).items()
    )


@pytest.fixture(scope="module")
def manifest(synthetic_cache: Path) -> Manifest:
    return open_cache(synthetic_cache).manifest


def describes(manifest: Manifest, settings: BuildSettings, **changed: Any) -> Manifest:
    """The manifest of a cache with these rows; what `describe_corpus` would say is stood for by the path."""
    rows = {"seq_len": settings.rows.seq_len, "mode": settings.rows.mode, "rows_per_shard": A_SHARD}
    update = {
        "corpus": {"source": settings.corpus.source},
        "tokenizer": IDENTITY,
        "rows": manifest.rows.model_copy(update={**rows, "rows_per_chunk": 1}),
        **changed,
    }
    return manifest.model_copy(update=update)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the documents that are read from here on."""
    read: list[str] = []
    make = files.make_document

    def watched(*positional: Any, place: str, **named: Any) -> Any:
        read.append(place)
        return make(*positional, place=place, **named)

    monkeypatch.setattr(files, "make_document", watched)
    return read


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.none() | st.text(max_size=40), min_size=1, max_size=25),
    mode=st.sampled_from(["packed", "document"]),
    ending=st.sampled_from(["parquet", "jsonl"]),
    seq_len=st.integers(1, 30),
    shards=st.lists(st.integers(0, 12), max_size=8),
)
def test_rows_are_those_of_the_simple_twin_whoever_begins_where(
    manifest: Manifest,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    mode: str,
    ending: str,
    seq_len: int,
    shards: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    settings = asked(write_corpus(folder / "corpus", texts, ending, group=2), seq_len, mode)
    expected = twin(texts, seq_len, mode)
    plain = CorpusRows(settings, TOKENIZER, IDENTITY)
    assert not expected or plain.count() == len(expected)
    whole = list(plain.take(range(len(expected))))
    assert tokens(whole) == expected
    store = LocalStore(folder / "cache")
    one = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, describes(manifest, settings)))
    for shard in shards:
        wanted = range(A_SHARD * shard, min(A_SHARD * (shard + 1), len(expected)))
        fresh = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, describes(manifest, settings)))
        if len(wanted):
            assert same(list(one.take(wanted)), whole[wanted.start : wanted.stop])
            assert same(list(fresh.take(wanted)), whole[wanted.start : wanted.stop])


@pytest.fixture(scope="module")
def built_once(
    manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildSettings, Path, Manifest, list[TokenRow]]:
    folder = tmp_path_factory.mktemp("built")
    settings = asked(write_corpus(folder / "corpus", words(400)))
    described = describes(manifest, settings)
    rows = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(LocalStore(folder / "cache"), described))
    return settings, folder / "cache", described, list(rows.take(range(rows.count())))


@pytest.fixture
def built(
    built_once: tuple[BuildSettings, Path, Manifest, list[TokenRow]], tmp_path: Path
) -> tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]]:
    """Settings, the store of a cache with the bookmarks of all its shards, and its rows."""
    settings, cache, described, whole = built_once
    return settings, LocalStore(Path(shutil.copytree(cache, tmp_path / "cache"))), described, whole


def test_a_restart_reads_what_it_needs_and_little_more(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store, described, whole = built
    assert len(whole) > 500
    read = counted(monkeypatch)
    wanted = range(500, 504)
    assert same(
        list(CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described)).take(wanted)), whole[500:504]
    )
    assert len(read) <= 20
    read.clear()
    assert same(list(CorpusRows(settings, TOKENIZER, IDENTITY).take(wanted)), whole[500:504])
    assert len(read) > 200


def test_what_a_builder_far_ahead_passes_is_kept_for_others(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], tmp_path: Path
) -> None:
    settings, known, described, whole = built
    store = LocalStore(tmp_path / "other")
    assert same(
        list(CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described)).take(range(80, 84))), whole[80:84]
    )
    expected = {bookmark_key(row): known.read(bookmark_key(row)) for row in range(A_SHARD, 85, A_SHARD)}
    assert {key: store.read(key) for key in store.sizes()} == expected


def test_builders_that_take_turns_read_each_document_about_once(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _, described, whole = built
    store = LocalStore(tmp_path / "other")
    builders = [CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described)) for _ in range(4)]
    read = counted(monkeypatch)
    for shard in range(len(whole) // A_SHARD):
        wanted = range(shard * A_SHARD, (shard + 1) * A_SHARD)
        assert same(list(builders[shard % 4].take(wanted)), whole[wanted.start : wanted.stop])
    shards = len(whole) // A_SHARD
    assert len(read) < 20 * shards  # a group is read to begin anywhere; from the beginning it would be 200 each


def test_what_has_to_be_unpacked_up_to_a_bookmark_is_read_on_instead_but_for_the_first_time(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_corpus(tmp_path / "corpus", words(400), "jsonl")
    for path in source.iterdir():
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    settings = asked(source)
    store, described = LocalStore(tmp_path / "cache"), describes(manifest, settings)
    whole = list(CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described)).take(range(400)))
    rows = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described))
    read = counted(monkeypatch)
    assert same(list(rows.take(range(300, 304))), whole[300:304])
    assert len(read) <= 20
    assert same(list(rows.take(range(380, 384))), whole[380:384])
    assert len(set(read)) == len(read) > 40  # those between, each once
    assert same(list(rows.take(range(8, 12))), whole[8:12])


def test_rows_come_from_the_commit_that_the_manifest_names(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[str | None] = []

    def load(*_positional: Any, revision: str | None, **_named: Any) -> Any:
        asked_for.append(revision)
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    settings = asked(Path("owner/name"), revision="main")
    described = describes(manifest, settings, corpus={"revision": "0123abc"})
    with pytest.raises(UserError, match="offline"):
        list(CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(LocalStore(tmp_path), described)).take(range(4)))
    assert asked_for == ["0123abc"]


@pytest.mark.parametrize("damage", [*UNSOUND, *MISLEADING])
def test_a_bookmark_that_is_not_true_changes_no_row(
    damage: str, built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]]
) -> None:
    settings, store, described, whole = built
    for row in range(400, 501, A_SHARD):
        store.publish(bookmark_key(row), {**UNSOUND, **MISLEADING}[damage](store.read(bookmark_key(row))))
    taken = list(CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described)).take(range(500, 504)))
    assert same(taken, whole[500:504])


def test_builders_at_once_write_the_same_bookmarks(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], tmp_path: Path
) -> None:
    settings, known, described, whole = built
    store, failures = LocalStore(tmp_path / "other"), list[BaseException]()

    def work() -> None:
        try:
            rows = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described))
            assert same(list(rows.take(range(200))), whole[:200])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {key: store.read(key) for key in store.sizes()} == {
        bookmark_key(row): known.read(bookmark_key(row)) for row in range(A_SHARD, 201, A_SHARD)
    }
    assert not list((tmp_path / "other").rglob(".*"))


def test_rows_are_the_same_when_reading_breaks_off_now_and_then(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store, described, whole = built
    made = files.make_document
    chance = random.Random(3)

    def dropping(*positional: Any, **named: Any) -> Any:
        if chance.random() < 0.1:
            raise OSError(5, "Input/output error")
        return made(*positional, **named)

    monkeypatch.setattr(files, "make_document", dropping)
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    for start in (4, 300):
        rows = CorpusRows(settings, TOKENIZER, IDENTITY, Bookmarks(store, described))
        assert same(list(rows.take(range(start, start + 100))), whole[start : start + 100])


def test_a_corpus_that_ends_too_early_says_where(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]],
) -> None:
    settings, store, described, whole = built
    for bookmarks in (None, Bookmarks(store, described)):
        rows = CorpusRows(settings, TOKENIZER, IDENTITY, bookmarks)
        with pytest.raises(UserError, match=rf"ends after {len(whole)} rows, .* set rows\.count to {len(whole)} or"):
            list(rows.take(range(len(whole) - 2, len(whole) + 2)))


@pytest.mark.parametrize("texts", [[None, None], ["", ""]])
def test_a_corpus_without_text_is_named_when_its_rows_are_counted(texts: list[str | None], tmp_path: Path) -> None:
    settings = asked(write_corpus(tmp_path / "corpus", texts))
    with pytest.raises(UserError, match=r"corpus\.source .*: no document has text; check corpus\.text_column"):
        CorpusRows(settings, TOKENIZER, IDENTITY).count()


def test_verify_knows_bookmarks_and_names_those_that_are_none(
    built: tuple[BuildSettings, LocalStore, Manifest, list[TokenRow]], synthetic_cache: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))
    store, settings = LocalStore(cache), built[0]
    bookmarks = Bookmarks(store, open_cache(cache).manifest)
    rows = CorpusRows(settings, TOKENIZER, IDENTITY, bookmarks)
    list(rows.take(range(16)))
    assert [row for row in (8, 16) if (cache / bookmark_key(row)).is_file()] == [8, 16]
    bookmarks.save_length(16)
    assert verify(store).is_sound
    assert verify(store).objects == len([path for path in cache.rglob("*") if path.is_file()])
    (cache / bookmark_key(16)).write_bytes((cache / bookmark_key(16)).read_bytes()[:-4])
    (cache / CORPUS_FOLDER / "notes.txt").write_text("mine")
    found = {(fault.kind, fault.key) for fault in verify(store).faults}
    assert found == {("hint", bookmark_key(16)), ("stray", f"{CORPUS_FOLDER}/notes.txt")}


def test_a_token_the_teacher_has_no_row_for_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    source = write_corpus(tmp_path / "texts", ["plain text", "one <image> here"] * 4)
    as_text = CorpusRows(asked(source), tokenizer, IDENTITY)
    assert as_text.count() > 3
    with pytest.raises(UserError, match=r"has the token 257, '<image>', but the teacher knows 257 tokens only"):
        CorpusRows(asked(source, special_tokens="control"), tokenizer, IDENTITY).count()
