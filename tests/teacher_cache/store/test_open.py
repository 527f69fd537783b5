import sys
from pathlib import Path

import pytest

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheFormatError
from teacher_cache.store.local import LocalStore
from teacher_cache.store.objects import ObjectStore
from teacher_cache.store.open import open_existing, open_store
from tests.helpers.object_server import BUCKET, Proxy


def test_a_path_is_a_folder_and_a_url_an_object_store(s3: Proxy, url: str, tmp_path: Path) -> None:
    for path in (tmp_path, str(tmp_path)):
        store = open_store(path)
        assert isinstance(store, LocalStore)
        assert store.path == tmp_path
    remote = open_store(f"{url}/")
    assert isinstance(remote, ObjectStore)
    assert remote.path == url


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ftp://bucket/cache", "ftp:// is not known; give a folder, or a URL of s3, gs, az"),
        ("http://host/cache", "http:// is not known"),
        (Path("s3://bucket/cache"), "a slash is missing; write s3://BUCKET/PREFIX, in Python as a str"),
        ("s3:///cache", "names no bucket; write s3://BUCKET/PREFIX"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(path: str | Path, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_store(path)


def test_a_bucket_that_is_not_there_is_refused_at_once(s3: Proxy) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket/cache: there is no such bucket"):
        open_store("s3://no-such-bucket/cache")


def test_without_obstore_a_url_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for name in ("objects", "leases", "failures"):
        monkeypatch.delitem(sys.modules, f"teacher_cache.store.{name}", raising=False)
    with pytest.raises(UserError, match=r"object stores need the package obstore; pip install 'obstore>=0\.12'"):
        open_store(f"s3://{BUCKET}/cache")


def test_a_cache_to_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="absent: no such folder; give the path of a cache"):
        open_existing(tmp_path / "absent")
    assert open_existing(tmp_path).path == tmp_path


def test_a_null_character_is_refused() -> None:
    with pytest.raises(UserError, match="a path has no null characters"):
        open_store("there\0")
