import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from delta_common.errors import UserError
from delta_common.files import STAGING_PREFIX
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
