"""What every store promises, of a folder and of an object store alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from teacher_cache.store.base import Store, is_url, read_if_there
from teacher_cache.store.local import LocalStore
from teacher_cache.store.objects import ObjectStore
from tests.helpers.object_server import Proxy

Opened = Callable[[], Store]


@pytest.fixture(params=["local", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens the same empty place, as another process would."""
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "cache")
    assert isinstance(request.getfixturevalue("s3"), Proxy)
    url = request.getfixturevalue("url")
    return lambda: ObjectStore(url)


def test_an_empty_place_has_nothing(opened: Opened) -> None:
    store = opened()
    assert not store.exists()
    assert store.names() == set()
    assert store.sizes() == {}
    assert store.size("a/b") is None
    assert read_if_there(store, "a/b") is None
    for read in (lambda: store.read("a/b"), lambda: list(store.blocks("a/b")), lambda: list(store.read_all(["a/b"]))):
        with pytest.raises(FileNotFoundError):
            read()


def test_what_is_published_is_read_by_another(opened: Opened) -> None:
    large = bytes(range(256)) * 9000
    opened().publish("a/b/c", b"first")
    opened().publish("a/b/c", memoryview(b"second"))
    opened().publish("a/d", large)
    opened().publish("e", b"")
    store = opened()
    assert store.exists()
    assert store.read("a/b/c") == b"second"
    assert b"".join(store.blocks("a/d")) == large
    assert list(store.read_all(["a/d", "e", "a/b/c"])) == [large, b"", b"second"]
    assert store.size("a/d") == len(large)
    assert store.names() == {"a", "e"}
    assert store.names("a") == {"b", "d"}
    assert store.sizes() == {"a/b/c": 6, "a/d": len(large), "e": 0}
    assert store.sizes("a/b") == {"a/b/c": 6}
    assert read_if_there(store, "e") == b""


def test_names_that_begin_with_a_dot_are_not_listed(opened: Opened) -> None:
    store = opened()
    for key in ("a/b", ".locks/x", "a/.hidden", ".quarantine/0001/a/b"):
        store.publish(key, b"x")
    assert store.names() == {"a"}
    assert store.sizes() == {"a/b": 1}
    assert store.read(".quarantine/0001/a/b") == b"x"
    assert store.names(".quarantine") == {"0001"}


def test_an_object_is_created_once(opened: Opened) -> None:
    assert opened().create("record", b"ours")
    assert opened().create("record", b"ours"), "it is what was asked for"
    assert not opened().create("record", b"theirs")
    assert opened().read("record") == b"ours"


def test_removing_and_moving(opened: Opened) -> None:
    store = opened()
    store.publish("a/b", b"x")
    store.move("a/b", "c/d/e")
    assert store.sizes() == {"c/d/e": 1}
    with pytest.raises(FileNotFoundError):
        store.move("a/b", "c")
    store.remove("c/d/e")
    store.remove("c/d/e")
    assert store.sizes() == {}


def test_a_lock_has_one_holder_and_leaves_nothing(opened: Opened) -> None:
    ours, theirs = opened(), opened()
    assert ours.is_abandoned("shard")
    with ours.lock("shard") as held:
        assert held
        with theirs.lock("shard") as second:
            assert not second
        with theirs.lock("another") as other:
            assert other
        assert not theirs.is_abandoned("shard")
        ours.publish("made/under/lock", b"x")
    with theirs.lock("shard", patience=1.0) as held:
        assert held
    ours.clear_locks()
    assert ours.names(".locks") == set()


def test_zarr_reads_the_same_objects_and_cannot_write(opened: Opened) -> None:
    store = opened()
    store.publish("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    assert zarr.open_group(store.zarr(), mode="r").metadata.zarr_format == 3
    assert store.zarr().read_only


def test_places_are_named_for_people(opened: Opened) -> None:
    store = opened()
    assert store.where("a/b") == f"{store.path}/a/b"
    assert store.where("") == str(store.path)


def test_urls_are_told_from_paths() -> None:
    assert is_url("s3://bucket/cache")
    assert is_url(Path("s3://bucket/cache")), "a path swallows a slash, and must not become a folder called s3:"
    for path in ("cache", "/data/cache", "./s3", "a/b:/c", Path("/data")):
        assert not is_url(path)
