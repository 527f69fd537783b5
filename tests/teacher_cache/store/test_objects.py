"""What only an object store has: clients, requests, leases. Faults are in tests/faults/test_object_store_faults.py."""

import time

import obstore
import pytest
import zarr

from delta_common.errors import UserError
from teacher_cache.format.errors import CacheError
from teacher_cache.store.objects import ObjectStore, Patience
from tests.helpers.object_server import Fault, Proxy

NAME = "shard-00003"


def test_requests_are_few(s3: Proxy, url: str) -> None:
    store = ObjectStore(url)
    keys = [f"commits/{shard:05d}.json" for shard in range(20)]
    for key in keys:
        store.publish(key, key.encode())
    s3.requests.clear()
    assert len(store.sizes()) == 20
    assert len(s3.requests) == 1
    assert list(store.read_all(keys)) == [key.encode() for key in keys]
    assert len(s3.requests) == 21
    assert b"".join(store.blocks(keys[0])) == keys[0].encode()
    assert len(s3.requests) == 22


def test_small_objects_are_read_at_the_same_time(s3: Proxy, url: str) -> None:
    store = ObjectStore(url)
    keys = [str(number) for number in range(8)]
    for key in keys:
        store.publish(key, key.encode())
    s3.fault = lambda request: Fault(delay=0.3)
    started = time.monotonic()
    assert list(store.read_all(keys)) == [key.encode() for key in keys]
    assert time.monotonic() - started < 8 * 0.3


def test_a_folder_is_not_its_namesake(s3: Proxy, url: str) -> None:
    store = ObjectStore(url)
    for key in ("a/b", "ab/c", "a.json"):
        store.publish(key, b"x")
    assert store.sizes("a") == {"a/b": 1}
    assert ObjectStore(f"{url}/a").sizes() == {"b": 1}


def test_a_lock_lost_to_another_stops_every_write(s3: Proxy, url: str) -> None:
    store = ObjectStore(url, Patience(lease=0.8, silence=1.0, outage=3.0))

    def lose_it() -> None:
        with store.lock(NAME):
            obstore.put(store._writes, f".locks/{NAME}", b'{"owner": "another", "beat": 0}')
            time.sleep(0.8)
            for write in (lambda: store.publish("a", b""), lambda: store.create("a", b""), lambda: store.remove("b")):
                with pytest.raises(UserError, match="another process took this lock over"):
                    write()

    store.publish("b", b"x")
    with pytest.raises(UserError, match="another process took this lock over"):
        lose_it()
    assert store.sizes() == {"b": 1}


def test_what_zarr_cannot_read_is_one_line(s3: Proxy, url: str) -> None:
    store = ObjectStore(url)
    store.publish("zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
    s3.fault = lambda request: Fault(status=403, code="AccessDenied")
    with pytest.raises(UserError, match=rf"{url}/\S+: the store refuses access \(AccessDenied\)") as caught:
        zarr.open_group(store.zarr(), mode="r")
    assert not isinstance(caught.value, CacheError)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_url_without_a_bucket_says_how_it_is_written(scheme: str) -> None:
    with pytest.raises(UserError, match=f"names no bucket; write {scheme}://BUCKET/PREFIX"):
        ObjectStore(f"{scheme}:///cache")


def test_the_environment_decides_about_plain_http(s3: Proxy, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ObjectStore(url).exists()
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(UserError, match=r"the endpoint is plain http; .* set AWS_ALLOW_HTTP=true"):
        ObjectStore(url).exists()
