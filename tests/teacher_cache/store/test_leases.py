"""Leases in a store in memory; tests/faults/test_object_store_faults.py has them in a store that fails."""

import json
import time
from collections.abc import Callable
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from delta_common.errors import UserError
from teacher_cache.store.leases import Locks, put_if, read_version

KEY = ".locks/shard"
LEASE = 0.8


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def locks(store: MemoryStore) -> Locks:
    """As another process has them."""
    return Locks(store, "s3://bucket", LEASE)


def content(store: MemoryStore) -> dict[str, object]:
    found: dict[str, object] = json.loads(bytes(obstore.get(store, KEY).bytes()))
    return found


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lock_is_one_processes_until_it_ends(store: MemoryStore) -> None:
    lease = locks(store).acquire(KEY, 0)
    assert lease is not None
    assert locks(store).acquire(KEY, 0) is None
    assert locks(store).acquire(KEY, 2 * LEASE) is None, "it is renewed, however long others wait"
    lease.require()
    lease.end()
    assert read_version(store, KEY, KEY) is None
    again = locks(store).acquire(KEY, 0)
    assert again is not None
    again.end()


def test_the_holder_rewrites_its_object(store: MemoryStore) -> None:
    lease = locks(store).acquire(KEY, 0)
    assert lease is not None
    owner = content(store)["owner"]
    wait_until(lambda: content(store)["beat"] == 3)
    assert content(store)["owner"] == owner
    lease.end()


def test_a_dead_holders_lock_is_taken_over_once_it_was_seen_unchanged_for_a_lease(store: MemoryStore) -> None:
    obstore.put(store, KEY, b'{"owner": "dead", "beat": 7}')
    others = locks(store)
    started = time.monotonic()
    assert others.acquire(KEY, LEASE / 4) is None
    lease = others.acquire(KEY, 20 * LEASE)
    assert time.monotonic() - started >= LEASE
    assert lease is not None
    assert content(store)["owner"] != "dead"
    lease.end()


def test_a_lock_is_abandoned_where_nobody_renews_it(store: MemoryStore) -> None:
    assert locks(store).is_abandoned(KEY)
    lease = locks(store).acquire(KEY, 0)
    assert lease is not None
    assert not locks(store).is_abandoned(KEY)
    lease.end()
    obstore.put(store, KEY, b'{"owner": "dead", "beat": 7}')
    started = time.monotonic()
    assert locks(store).is_abandoned(KEY)
    assert time.monotonic() - started >= LEASE


def test_a_holder_notices_that_another_took_its_lock_and_leaves_it_alone(store: MemoryStore) -> None:
    lease = locks(store).acquire(KEY, 0)
    assert lease is not None
    theirs = b'{"owner": "another", "beat": 0}'
    obstore.put(store, KEY, theirs)

    def is_lost() -> bool:
        try:
            lease.require()
        except UserError:
            return True
        return False

    wait_until(is_lost)
    with pytest.raises(UserError, match="another process took this lock over; run the same command again"):
        lease.require()
    lease.end()
    assert bytes(obstore.get(store, KEY).bytes()) == theirs


def test_a_lock_that_could_not_be_renewed_is_not_trusted(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = locks(store).acquire(KEY, 0)
    assert lease is not None

    def refuse(*_: object, **__: object) -> None:
        raise UserError("the store is away")

    monkeypatch.setattr("teacher_cache.store.leases.put_if", refuse)
    time.sleep(1.3 * LEASE)
    with pytest.raises(UserError, match=r"could not renew its lock for \d s \(the store is away\); run the same"):
        lease.require()
    lease.end()
    assert read_version(store, KEY, KEY) is not None, "it may be another's by now, so it is left to expire"


def test_a_lock_that_was_not_renewed_lately_is_renewed_before_it_is_removed(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal has no condition: just before the lease runs out it could hit another's lock."""
    beats: list[object] = []

    def note(*arguments: Any) -> object:
        beats.append(json.loads(arguments[2])["beat"])
        return put_if(*arguments)

    for idle, expected in ((0.0, []), (0.6 * LEASE, [1])):
        lease = locks(store).acquire(KEY, 0)
        assert lease is not None
        lease._ending.set()
        lease._thread.join()
        time.sleep(idle)
        with monkeypatch.context() as patch:
            patch.setattr("teacher_cache.store.leases.put_if", note)
            lease.end()
        assert beats == expected
        assert read_version(store, KEY, KEY) is None


def test_a_store_that_ignores_conditions_is_refused(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = obstore.put

    def without_condition(store: MemoryStore, key: str, data: bytes, **_: object) -> object:
        return plain(store, key, data)

    monkeypatch.setattr(obstore, "put", without_condition)
    with pytest.raises(UserError, match="s3://bucket: the store has no conditional puts"):
        locks(store).acquire(KEY, 0)
    assert read_version(store, KEY, KEY) is None


def test_a_put_under_a_condition(store: MemoryStore) -> None:
    first = put_if(store, "key", b"one", "create", "key")
    assert first is not None
    assert put_if(store, "key", b"two", "create", "key") is None
    assert put_if(store, "key", b"one", "create", "key") == first, "an earlier attempt may have come through"
    second = put_if(store, "key", b"two", first, "key")
    assert second not in (None, first)
    assert put_if(store, "key", b"three", first, "key") is None
    assert read_version(store, "key", "key") == second
    assert bytes(obstore.get(store, "key").bytes()) == b"two"
