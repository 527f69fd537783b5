"""Where shards begin is kept beside the cache, believed only of the same corpus, and never needed."""

from pathlib import Path

import numpy as np
import pytest

from teacher_cache.corpus.bookmarks import Bookmarks, bookmark_key, bookmark_row, is_hint_key, unsound_hints
from teacher_cache.corpus.documents import Cursor, RowEnd, Tokenized
from teacher_cache.format.keys import CORPUS_ROWS_KEY
from teacher_cache.format.manifest import Manifest
from teacher_cache.store.local import LocalStore
from tests.helpers.golden import changed, golden_manifest

TOKENS = np.arange(30, dtype=np.uint32)
END = RowEnd(Tokenized(Cursor(document=5, file=1, item=2), TOKENS), used=12)


@pytest.fixture
def manifest() -> Manifest:
    return changed(golden_manifest("sampled"), "rows", count=40, rows_per_shard=4, rows_per_chunk=4)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_a_shards_first_row_is_kept_and_found_by_others(store: LocalStore, manifest: Manifest) -> None:
    one = Bookmarks(store, manifest)
    for row in (4, 5, 8):
        one.save(row, END)
    found = list(Bookmarks(store, manifest).between(0, 11))
    assert [bookmark.row for bookmark in found] == [8, 4], "the last first, rows inside a shard not kept"
    assert (found[0].place, found[0].used) == (END.document.place, 12)
    assert [bookmark.row for bookmark in one.between(4, 8)] == [8]


def test_a_bookmark_holds_only_for_the_document_it_was_made_in(store: LocalStore, manifest: Manifest) -> None:
    marks = Bookmarks(store, manifest)
    marks.save(4, END)
    (bookmark,) = marks.between(0, 4)
    assert bookmark.holds(TOKENS, "packed")
    assert not bookmark.holds(TOKENS + 1, "packed")
    assert not bookmark.holds(TOKENS, "document"), "tokens are left of it"


def test_bookmarks_of_another_corpus_or_damaged_ones_are_passed_over(store: LocalStore, manifest: Manifest) -> None:
    Bookmarks(store, manifest).save(4, END)
    other = changed(manifest, "rows", seq_len=manifest.seq_len + 1)
    assert list(Bookmarks(store, other).between(0, 8)) == []
    data = store.read(bookmark_key(4))
    assert unsound_hints(store, manifest, [bookmark_key(4)]) == []
    store.publish(bookmark_key(4), data.replace(b'"used": 12', b'"used": 13'))
    assert list(Bookmarks(store, manifest).between(0, 8)) == []
    assert unsound_hints(store, manifest, [bookmark_key(4)]) == [bookmark_key(4)]


def test_a_bookmark_under_another_rows_key_is_none(store: LocalStore, manifest: Manifest) -> None:
    Bookmarks(store, manifest).save(4, END)
    store.publish(bookmark_key(8), store.read(bookmark_key(4)))
    assert [bookmark.row for bookmark in Bookmarks(store, manifest).between(0, 8)] == [4]


def test_the_number_of_rows_is_kept(store: LocalStore, manifest: Manifest) -> None:
    marks = Bookmarks(store, manifest)
    assert marks.length() is None
    marks.save_length(17)
    assert Bookmarks(store, manifest).length() == 17
    store.publish(CORPUS_ROWS_KEY, b"{}")
    assert marks.length() is None


def test_keys_are_told_from_others() -> None:
    assert bookmark_row(bookmark_key(123)) == 123
    assert bookmark_row("corpus/positions/12.json") is None
    assert is_hint_key(CORPUS_ROWS_KEY)
    assert is_hint_key(bookmark_key(0))
    assert not is_hint_key("corpus/positions/x")
