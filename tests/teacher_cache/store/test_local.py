import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from delta_common.errors import UserError
from delta_common.files import STAGING_PREFIX
from teacher_cache.store.base import read_if_there
from teacher_cache.store.local import LocalStore


def test_publish_then_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.publish("a/b/c", b"first")
    store.publish("a/b/c", b"second")
    assert store.read("a/b/c") == b"second"
    assert store.sizes("a/b") == {"a/b/c": 6}
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
    mine, other = (f"{STAGING_PREFIX}0000{shard}.json-xyz" for shard in range(2))
    for name in (mine, other):
        (tmp_path / "commits" / name).write_bytes(b"half")
    assert store.sizes("commits") == {"commits/00000.json": 2}
    store.remove_leftovers("commits/00000.json")
    assert sorted(p.name for p in (tmp_path / "commits").iterdir()) == [other, "00000.json"]


def test_a_lock_is_held_by_one_and_let_go_when_its_process_dies(tmp_path: Path) -> None:
    script = f"""
import time; from pathlib import Path; from teacher_cache.store.local import LocalStore
with LocalStore(Path({str(tmp_path)!r})).lock("shard-00001") as held:
    print(held, flush=True); time.sleep(600)
"""
    store = LocalStore(tmp_path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with store.lock("shard-00001") as held:
            assert not held
        with store.lock("shard-00002") as held:
            assert held
        holder.kill()
        holder.wait()
        with store.lock("shard-00001") as held:
            assert held
    store.clear_locks()
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_created_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.create("commits/00000.json", b"ours")
    assert store.create("commits/00000.json", b"ours")
    assert not store.create("commits/00000.json", b"theirs")
    assert store.read("commits/00000.json") == b"ours"


def test_names_are_what_lies_directly_in_a_folder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "cache")
    assert store.names() == set()
    for key in ("zarr.json", "tokens/c/0", ".locks/a", ".quarantine/0001/zarr.json", ".quarantine/0002/zarr.json"):
        store.publish(key, b"")
    assert store.names() == {"zarr.json", "tokens"}
    assert store.names(".quarantine") == {"0001", "0002"}
    with pytest.raises(UserError, match=r"zarr\.json: a file, not a folder"):
        store.names("zarr.json")


def test_a_lock_is_abandoned_unless_it_is_held(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.is_abandoned("shard-00001")
    with store.lock("shard-00001"):
        assert not LocalStore(tmp_path).is_abandoned("shard-00001")
    assert store.is_abandoned("shard-00001")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_what_cannot_be_read_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    store = LocalStore(tmp_path / "cache")
    store.publish("folder/x", b"1")
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    asked: list[tuple[Callable[[], object], str]] = [
        (store.exists, "cache"),
        (lambda: store.names("folder"), "cache/folder"),
        (lambda: store.read("folder/x"), "cache/folder/x"),
        (store.sizes, "cache"),
    ]
    for ask, name in asked:
        with pytest.raises(UserError, match=rf"{tmp_path / name}: cannot be read \({os.strerror(number)}\); "):
            ask()


def test_what_is_not_there_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "none")
    assert (store.exists(), store.names("a"), store.sizes("a"), store.size("a")) == (False, set(), {}, None)
    assert read_if_there(store, "a") is None
    assert read_if_there(LocalStore(tmp_path), "file/inner") is None
    assert read_if_there(LocalStore(tmp_path), "") is None


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long; choose a shorter --out"):
        LocalStore(tmp_path / ("n" * 300)).publish("x", b"")
