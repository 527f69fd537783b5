"""Bookmarks are kept of rows that begin a shard, found by the same rows only, and never believed when damaged."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import xxhash

from teacher_cache import open_cache
from teacher_cache.corpus.bookmarks import (
    Bookmark,
    Bookmarks,
    bookmark_key,
    bookmark_row,
    bookmarks_basis,
    is_hint_key,
    unsound_hints,
)
from teacher_cache.corpus.documents import Cursor, RowEnd, Tokenized
from teacher_cache.format.keys import CORPUS_ROWS_KEY
from teacher_cache.format.manifest import Manifest
from teacher_cache.store.local import LocalStore
from tests.helpers.damaged_bookmarks import UNSOUND

A_SHARD = 8
"""Rows per shard of the synthetic cache."""


@pytest.fixture(scope="module")
def manifest(synthetic_cache: Path) -> Manifest:
    found = open_cache(synthetic_cache).manifest
    assert found.rows.rows_per_shard == A_SHARD
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


def end_at(number: int, used: int = 2) -> RowEnd:
    """A row's end in the document of that number, which has five tokens."""
    return RowEnd(Tokenized(Cursor(document=number, item=number), np.arange(number, number + 5, dtype=np.uint32)), used)


def rows_between(bookmarks: Bookmarks, after: int, row: int) -> list[int]:
    return [bookmark.row for bookmark in bookmarks.between(after, row)]


def test_rows_that_begin_a_shard_are_kept_and_found_the_last_first(manifest: Manifest, store: LocalStore) -> None:
    bookmarks = Bookmarks(store, manifest)
    for row in range(1, 4 * A_SHARD + 1):
        bookmarks.save(row, end_at(row))
    assert sorted(store.sizes()) == [bookmark_key(row) for row in (8, 16, 24, 32)]
    assert rows_between(Bookmarks(store, manifest), 0, 100) == [32, 24, 16, 8]
    assert rows_between(Bookmarks(store, manifest), 8, 24) == [24, 16]
    assert rows_between(Bookmarks(store, manifest), 24, 31) == []
    found = next(bookmarks.between(0, 8))
    assert (found.place, found.used) == (Cursor(document=8, item=8), 2)


def test_a_stored_bookmark_has_these_bytes(manifest: Manifest, store: LocalStore) -> None:
    Bookmarks(store, manifest).save(A_SHARD, end_at(3))
    content = json.loads(store.read("corpus/positions/000000000008.json"))
    basis = [manifest.corpus, manifest.tokenizer.sha256, 0, "packed", 12]
    canonical = json.dumps(basis, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert content.pop("basis") == hashlib.sha256(canonical).hexdigest() == bookmarks_basis(manifest)
    assert len(content.pop("digest")) == 32
    assert content == {
        "row": 8,
        "place": {"document": 3, "file": 0, "item": 3, "byte": 0, "state": None},
        "used": 2,
        "tokens": xxhash.xxh3_128_hexdigest(bytes.fromhex("03000000 04000000 05000000 06000000 07000000")),
    }


@pytest.mark.parametrize(("used", "packed", "document"), [(0, True, False), (4, True, False), (5, False, True)])
def test_a_row_begins_within_a_document_if_packed_and_behind_it_if_not(
    used: int, packed: bool, document: bool, manifest: Manifest, store: LocalStore
) -> None:
    end = end_at(3, used)
    Bookmarks(store, manifest).save(A_SHARD, end)
    bookmark = next(Bookmarks(store, manifest).between(0, A_SHARD))
    assert bookmark.holds(end.document.tokens, "packed") == packed
    assert bookmark.holds(end.document.tokens, "document") == document
    assert not bookmark.holds(end.document.tokens + 1, "packed")
    assert not bookmark.holds(end.document.tokens + 1, "document")


@pytest.mark.parametrize("damage", UNSOUND)
def test_a_damaged_bookmark_is_passed_over_and_named(damage: str, manifest: Manifest, store: LocalStore) -> None:
    bookmarks = Bookmarks(store, manifest)
    for row in (8, 16):
        bookmarks.save(row, end_at(row))
    keys = [bookmark_key(8), bookmark_key(16)]
    assert unsound_hints(store, manifest, keys) == []
    store.publish(keys[1], UNSOUND[damage](store.read(keys[1])))
    assert rows_between(Bookmarks(store, manifest), 0, 100) == [8]
    assert unsound_hints(store, manifest, keys) == [keys[1]]


@pytest.mark.parametrize("changed", ["seq_len", "mode", "tokenizer", "corpus"])
def test_bookmarks_of_other_rows_are_passed_over(changed: str, manifest: Manifest, store: LocalStore) -> None:
    other = {
        "seq_len": {"rows": manifest.rows.model_copy(update={"seq_len": 17})},
        "mode": {"rows": manifest.rows.model_copy(update={"mode": "document"})},
        "tokenizer": {"tokenizer": manifest.tokenizer.model_copy(update={"sha256": "1"})},
        "corpus": {"corpus": {"source": "elsewhere"}},
    }[changed]
    bookmarks = Bookmarks(store, manifest)
    bookmarks.save(A_SHARD, end_at(8))
    bookmarks.save_length(77)
    elsewhere = manifest.model_copy(update=other)
    assert rows_between(Bookmarks(store, elsewhere), 0, 100) == []
    assert Bookmarks(store, elsewhere).length() is None
    keys = [bookmark_key(A_SHARD), CORPUS_ROWS_KEY]
    assert unsound_hints(store, elsewhere, keys) == keys


def test_bookmarks_do_not_depend_on_what_else_a_cache_holds(manifest: Manifest, store: LocalStore) -> None:
    Bookmarks(store, manifest).save(A_SHARD, end_at(8))
    teacher = manifest.teacher.model_copy(update={"name": "another"})
    rows = manifest.rows.model_copy(update={"rows_per_shard": 100, "count": 7})
    assert rows_between(Bookmarks(store, manifest.model_copy(update={"teacher": teacher, "rows": rows})), 0, 9) == [8]


def test_the_length_of_the_corpus_is_kept_and_not_believed_when_damaged(manifest: Manifest, store: LocalStore) -> None:
    assert Bookmarks(store, manifest).length() is None
    Bookmarks(store, manifest).save_length(77)
    assert Bookmarks(store, manifest).length() == 77
    assert unsound_hints(store, manifest, [CORPUS_ROWS_KEY]) == []
    store.publish(CORPUS_ROWS_KEY, store.read(CORPUS_ROWS_KEY).replace(b"77", b"78"))
    assert Bookmarks(store, manifest).length() is None
    Bookmarks(store, manifest).save_length(0)
    assert Bookmarks(store, manifest).length() is None


def test_the_revision_is_that_of_the_manifest(manifest: Manifest, store: LocalStore) -> None:
    pinned = manifest.model_copy(update={"corpus": {"revision": "0123abc"}})
    assert Bookmarks(store, pinned).revision == "0123abc"
    assert Bookmarks(store, manifest).revision is None


def test_keys_of_hints_are_told_from_others() -> None:
    assert bookmark_row(bookmark_key(1234)) == 1234
    key = bookmark_key(5)
    others = ["corpus/positions/1234.json", f"x{key}", f"{key}x", "corpus/positions/٠00000000005.json"]
    assert [bookmark_row(other) for other in others] == [None] * 4
    assert [known for known in [key, CORPUS_ROWS_KEY, *others] if is_hint_key(known)] == [key, CORPUS_ROWS_KEY]


def test_a_bookmark_refuses_keys_it_does_not_know(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="more"):
        Bookmark.model_validate({"basis": "", "row": 0, "place": {}, "used": 0, "tokens": "", "more": 1})
