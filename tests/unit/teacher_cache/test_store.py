import errno
import os
from pathlib import Path

import pytest

from cli_common.errors import UserError
from cli_common.files import STAGING_PREFIX, remove_leftovers
from teacher_cache.store import LocalStore


def test_publish_then_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.publish("a/b/c", b"first")
    store.publish("a/b/c", b"second")
    assert store.read("a/b/c") == b"second"
    assert store.keys("a/b") == ["a/b/c"]
    assert store.size("a/b/c") == 6


def test_a_full_disk_names_the_remedy_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.publish("x", b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full; free space and run the same command again"):
        store.publish("x", b"new")
    assert store.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        LocalStore(tmp_path).publish("file/inner", b"")


def test_leftovers_of_dead_writers_are_removed_and_never_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.publish("commits/00000.json", b"{}")
    (tmp_path / "commits" / f"{STAGING_PREFIX}xyz").write_bytes(b"half")
    assert store.keys("commits") == ["commits/00000.json"]
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in (tmp_path / "commits").iterdir()) == ["00000.json"]
