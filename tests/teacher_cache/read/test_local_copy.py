import os
import shutil
from pathlib import Path

import pytest

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.format.keys import FROZEN_WEIGHTS_KEY
from teacher_cache.read.local_copy import local_folder
from teacher_cache.store.local import LocalStore
from tests.helpers.golden import golden_cache, golden_manifest

MANIFEST = golden_manifest("top")


class RemoteStore:
    """A folder that is looked at as if it were an object store, and how often an object was read from it."""

    def __init__(self, path: Path) -> None:
        self._files, self.reads = LocalStore(path), 0

    def where(self, key: str) -> str:
        return f"s3://bucket/{key}"

    def read(self, key: str) -> bytes:
        self.reads += 1
        return self._files.read(key)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return RemoteStore(Path(shutil.copytree(golden_cache("top"), tmp_path / "cache")))


def fetch(store: RemoteStore) -> Path:
    return local_folder(store, MANIFEST, [FROZEN_WEIGHTS_KEY]) / FROZEN_WEIGHTS_KEY  # type: ignore[arg-type]


def test_a_local_cache_is_its_own_copy() -> None:
    assert local_folder(LocalStore(golden_cache("top")), MANIFEST, [FROZEN_WEIGHTS_KEY]) == golden_cache("top")


def test_a_local_cache_is_checked_unless_told_otherwise(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(CacheCorruptError, match="missing"):
        local_folder(store, MANIFEST, [FROZEN_WEIGHTS_KEY])
    assert local_folder(store, MANIFEST, [FROZEN_WEIGHTS_KEY], check_digests=False) == tmp_path


def test_a_remote_object_is_fetched_once_and_again_where_the_copy_is_damaged(
    remote: RemoteStore, tmp_path: Path
) -> None:
    path = fetch(remote)
    assert path == tmp_path / "user/delta-cache" / MANIFEST.fingerprint / FROZEN_WEIGHTS_KEY
    written = (golden_cache("top") / FROZEN_WEIGHTS_KEY).read_bytes()
    assert path.read_bytes() == written
    fetch(remote)
    assert remote.reads == 1
    path.write_bytes(written[:-1])
    assert fetch(remote).read_bytes() == written
    assert remote.reads == 2


def test_a_damaged_remote_object_leaves_no_copy(remote: RemoteStore, tmp_path: Path) -> None:
    (tmp_path / "cache" / FROZEN_WEIGHTS_KEY).write_bytes(b"something else")
    with pytest.raises(CacheCorruptError, match=rf"s3://bucket/{FROZEN_WEIGHTS_KEY}: its bytes are not"):
        fetch(remote)
    assert not list((tmp_path / "user").rglob("*.safetensors"))


def test_a_folder_that_cannot_be_written_names_the_variable(remote: RemoteStore, tmp_path: Path) -> None:
    (tmp_path / "user").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot be written .*; set XDG_CACHE_HOME to another"):
        fetch(remote)


def test_without_the_variable_copies_lie_in_the_home_folder(
    remote: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path / "home"))
    assert fetch(remote).is_relative_to(tmp_path / "home/.cache/delta-cache")
