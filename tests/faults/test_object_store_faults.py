"""An object store that fails, lies or is not there; processes that die while they hold a lock in it."""

import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pytest

from delta_common.errors import UserError
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.read.cache import open_cache
from teacher_cache.store import objects
from teacher_cache.store.objects import ObjectStore, Patience
from teacher_cache.store.open import open_store
from teacher_cache.verify.objects import verify
from tests.helpers.damageable import SIZES, contents, stored
from tests.helpers.object_server import Fault, Proxy, Request

LEASE = 1.6
NAME = "shard-00003"
KEY = f".locks/{NAME}"
FAULTS = {
    "500": Fault(status=500),
    "503": Fault(status=503, code="SlowDown"),
    "429": Fault(status=429, code="TooManyRequests"),
    "silence": Fault(delay=1.5),
    "dropped before": Fault(forward=False),
    "dropped after": Fault(body_share=0),
    "dropped within": Fault(body_share=0.5),
}


@pytest.fixture(autouse=True)
def _faults_outlast_patience(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PATIENCE", Patience(lease=2.0, silence=1.0, outage=3.0))


def impatient(url: str) -> ObjectStore:
    return ObjectStore(url, Patience(lease=LEASE, silence=1.0, outage=3.0))


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_waited_out(s3: Proxy, url: str, name: str) -> None:
    store, times = open_store(url), 1 if name == "silence" else 2
    for data in (bytes(100_000), b"") if name != "silence" else (b"some bytes",):
        s3.times(times, FAULTS[name], "PUT", "object")
        store.publish("object", data)
        s3.times(times, FAULTS[name], "GET", "object")
        assert store.read("object") == data
        if name != "silence":
            s3.times(times, FAULTS[name], "GET", "object")
            assert b"".join(store.blocks("object")) == data
            s3.times(times, FAULTS[name], "HEAD", "object")
            assert store.size("object") == len(data)
    s3.times(times, FAULTS[name], "GET", "/")
    assert store.sizes() == {"object": len(data)}


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "dropped within"])
def test_an_object_is_created_once_whatever_becomes_of_the_answer(s3: Proxy, url: str, name: str) -> None:
    store = open_store(url)
    s3.times(1, FAULTS[name], "PUT", "record")
    if name == "silence":  # nobody knows whether such a put will come through
        with pytest.raises(UserError, match="does not answer in time"):
            store.create("record", b"ours")
        time.sleep(1.0)
    assert store.create("record", b"ours")
    assert not store.create("record", b"others")
    assert store.read("record") == b"ours"


def test_a_cache_built_and_read_through_faults_is_the_same(s3: Proxy, url: str, tmp_path: Path) -> None:
    kinds = [fault for name, fault in FAULTS.items() if name != "silence"]
    faults = itertools.cycle([what for fault in kinds for what in (fault, fault, None)])
    s3.fault = lambda request: next(faults)
    sizes = {**SIZES, "rows": 4}
    make_synthetic_cache(url, **sizes)
    assert stored(url) == contents(Path(make_synthetic_cache(tmp_path / "local", **sizes)))
    assert len(open_cache(url).rows(range(4)).tokens) == 4


def test_a_store_that_fails_while_rows_are_read_is_no_damage(s3: Proxy, url: str) -> None:
    make_synthetic_cache(url, **SIZES)
    cache = open_cache(url)
    s3.fault = lambda request: FAULTS["503"]
    with pytest.raises(UserError, match=rf"{url}/tokens/c/0/0: the store keeps answering 503 \(SlowDown\)") as caught:
        cache._read("tokens", np.arange(4))
    assert not isinstance(caught.value, CacheCorruptError)
    s3.fault = lambda request: None
    assert len(cache.rows(range(4)).tokens) == 4


HOLDER = """
import sys, time
from teacher_cache.store.objects import ObjectStore, Patience
with ObjectStore(sys.argv[1], Patience(lease=float(sys.argv[3]))).lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_is_kept_while_its_owner_lives_and_then_goes_to_exactly_one(s3: Proxy, url: str) -> None:
    command = [sys.executable, "-c", HOLDER, url, NAME, str(LEASE)]
    observer = impatient(url)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with observer.lock(NAME, patience=1.2 * LEASE) as held:
            assert not held
        assert not observer.is_abandoned(NAME)
        process.kill()
    waiting, taken = threading.Barrier(4), []

    def contend(_: int) -> None:
        store = impatient(url)
        waiting.wait()
        started = time.monotonic()
        with store.lock(NAME, patience=2 * LEASE) as held:
            if held:
                taken.append(time.monotonic() - started)
                time.sleep(1.2 * LEASE)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(contend, range(4)))
    assert len(taken) == 1
    assert taken[0] >= LEASE, "nobody can know earlier that the owner is dead"
    assert impatient(url).names(".locks") == set()


def test_whether_an_owner_lives_is_found_out_within_a_lease(s3: Proxy, url: str) -> None:
    store = impatient(url)
    store.publish(KEY, b'{"owner": "dead", "beat": 3}')
    with store.lock(NAME) as held:
        assert not held
    started = time.monotonic()
    assert store.is_abandoned(NAME)
    assert LEASE / 2 < time.monotonic() - started < 2 * LEASE
    with store.lock(NAME) as held:
        assert held
        assert not impatient(url).is_abandoned(NAME)
    assert store.is_abandoned(NAME)


def test_a_lock_that_cannot_be_renewed_stops_the_work(s3: Proxy, url: str) -> None:
    store = impatient(url)

    def hold_too_long() -> None:
        with store.lock(NAME) as held:
            assert held
            s3.fault = lambda request: FAULTS["503"] if request.key.endswith(KEY) else None
            time.sleep(1.5 * LEASE)
            store.publish("tokens/c/3/0", b"late")

    with pytest.raises(
        UserError, match=rf"{KEY}: this process could not renew its lock for \d s .*keeps answering 503"
    ):
        hold_too_long()
    assert store.size("tokens/c/3/0") is None
    store.publish("tokens/c/3/0", b"without a lock")


def test_a_lock_taken_by_another_stops_the_work_and_stays_the_others(s3: Proxy, url: str) -> None:
    store = impatient(url)

    def lose_it() -> None:
        with store.lock(NAME) as held:
            assert held
            store.publish("before", b"")
            obstore.put(store._writes, KEY, b'{"owner": "somebody else", "beat": 0}')
            time.sleep(LEASE)

    with pytest.raises(UserError, match=f"{KEY}: another process took this lock over"):
        lose_it()
    assert store.read(KEY) == b'{"owner": "somebody else", "beat": 0}'


def test_a_renewal_that_came_through_unanswered_keeps_the_lock(s3: Proxy, url: str) -> None:
    store = impatient(url)
    with store.lock(NAME) as held:
        assert held
        for fault in (FAULTS["dropped after"], Fault(delay=LEASE / 3)):
            s3.times(1, fault, "PUT", KEY)
            time.sleep(LEASE)
            store.publish("tokens/c/3/0", b"mine")
    assert store.names(".locks") == set()


def wrong_endpoint(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


def silence(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    s3.fault = lambda request: Fault(delay=1.0, forward=False)


def plain_http(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("AWS_ALLOW_HTTP")


def unknown_key(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)


def expired_token(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    s3.fault = lambda request: Fault(status=400, code="ExpiredToken")


def unconditional(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    s3.fault = lambda request: Fault(without=frozenset({"if-none-match"}))


def unconditional_updates(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    s3.fault = lambda request: Fault(without=frozenset({"if-match"}))


def refuses_conditions(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    def refuse(request: Request) -> Fault | None:
        return Fault(status=501, code="NotImplemented") if "if-none-match" in request.headers else None

    s3.fault = refuse


def without_obstore(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "obstore", None)
    for name in ("objects", "leases", "failures"):
        patch.delitem(sys.modules, f"teacher_cache.store.{name}")


def nothing(s3: Proxy, patch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("wrong", "path", "said"),
    [
        (wrong_endpoint, None, "the store cannot be reached or does not answer in time; check .*AWS_ENDPOINT_URL"),
        (silence, None, "the store cannot be reached or does not answer in time; check .*AWS_ENDPOINT_URL"),
        (plain_http, None, "the endpoint is plain http; .* set AWS_ALLOW_HTTP=true"),
        (unknown_key, None, r"the store refuses access \(InvalidAccessKeyId\); check AWS_ACCESS_KEY_ID"),
        (expired_token, None, r"the store refuses access \(ExpiredToken\); check AWS_ACCESS_KEY_ID"),
        (nothing, "s3://no-such-bucket/cache", "there is no such bucket; make it first, or correct the path"),
        (nothing, "s3:///cache", "names no bucket; write s3://BUCKET/PREFIX"),
        (nothing, "ftp://bucket/cache", "ftp:// is not known; give a folder, or a URL of s3, gs, az"),
        (nothing, Path("s3://bucket/cache"), "a slash is missing; write s3://BUCKET/PREFIX, in Python as a str"),
        (nothing, "az://container/cache", "the store refuses access; check AZURE_STORAGE_ACCOUNT_NAME"),
        (unconditional, None, "the store has no conditional puts.*; build into a local folder and copy it there"),
        (unconditional_updates, None, "the store has no conditional puts"),
        (refuses_conditions, None, "the store has no conditional puts"),
        (without_obstore, None, r"object stores need the package obstore; pip install 'obstore>=0\.12'"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(
    s3: Proxy, url: str, wrong, path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(s3, monkeypatch)
    path = path or url
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"^{path}(/\S*)?: {said}") as caught:
        make_synthetic_cache(path, **SIZES)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10
    assert not list(Path().glob("s3:*"))


def test_gone_between_listing_and_reading_is_a_fault_not_a_crash(s3: Proxy, url: str) -> None:
    make_synthetic_cache(url, **SIZES)
    store = open_store(url)
    s3.fault = lambda request: (
        Fault(status=404, code="NoSuchKey")
        if request.key.endswith("tokens/c/1/0") and request.method == "GET"
        else None
    )
    faults = verify(store).faults
    assert [(fault.kind, fault.key) for fault in faults] == [("digest", "tokens/c/1/0")]
    assert "no such object" in faults[0].problem
