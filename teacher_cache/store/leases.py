"""Locks in an object store: each is an object with a lease, because a store does not notice that a process has died.

The holder of a lock rewrites its object several times a lease. Another process may take the lock over once it has
itself seen the object unchanged for the length of a lease, so clocks of two machines are never compared. Every step
is a conditional put: of several processes that try, only one succeeds.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from delta_common.errors import UserError
from teacher_cache.store.failures import CONDITIONAL_PUT, ask

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, PutResult, UpdateVersion
    from obstore.store import ObjectStore

BEATS_A_LEASE = 4
OTHER_VERSION: "UpdateVersion" = {"e_tag": f'"{"0" * 32}"', "version": "1"}


class Locks:
    """The locks under one URL as one process sees them.

    `seconds` is the length of a lease, the same for every process. `store` should give up on a request well within it.
    """

    def __init__(self, store: "ObjectStore", url: str, seconds: float) -> None:
        self._store, self._url, self._seconds = store, url, seconds
        self._seen: dict[str, tuple[UpdateVersion, float]] = {}
        self._is_proven = False

    def acquire(self, key: str, patience: float) -> "Lease | None":
        """Try for `patience` seconds to get the lock at `key`; None if another process kept it that long."""
        deadline = time.monotonic() + patience
        while True:
            lease = self._try(key)
            left = deadline - time.monotonic()
            if lease is not None or left <= 0:
                return lease
            time.sleep(min(left, self._seconds / BEATS_A_LEASE))

    def is_abandoned(self, key: str) -> bool:
        """Whether nobody renews the lock at `key`; waits until its object changes, one lease at most."""
        first = self._seen[key][0] if key in self._seen else self._look(key)
        while True:
            version = self._look(key)
            if version is None or self._is_expired(key):
                return True
            if version != first:
                return False
            time.sleep(self._seconds / BEATS_A_LEASE / 2)

    def _try(self, key: str) -> "Lease | None":
        lease = Lease(self._store, key, f"{self._url}/{key}", self._seconds)
        if not lease.begin("create"):
            version = self._look(key)
            if version is None or not self._is_expired(key) or not lease.begin(version):
                return None
        self._seen.pop(key, None)
        self._require_conditions(lease)
        return lease

    def _look(self, key: str) -> "UpdateVersion | None":
        """The current version of a lock's object; remembers when this process first saw that version."""
        version = read_version(self._store, key, f"{self._url}/{key}")
        if version is None:
            self._seen.pop(key, None)
        elif key not in self._seen or self._seen[key][0] != version:
            self._seen[key] = (version, time.monotonic())
        return version

    def _is_expired(self, key: str) -> bool:
        return time.monotonic() - self._seen[key][1] >= self._seconds

    def _require_conditions(self, lease: "Lease") -> None:
        """Some stores ignore the condition of a put: once per process, try two puts that must fail."""
        if self._is_proven:
            return
        modes: list[PutMode] = ["create", OTHER_VERSION]
        if any(put_if(self._store, lease.key, b"a trial", mode, lease.where) is not None for mode in modes):
            lease.end()
            raise UserError(f"{self._url}: {CONDITIONAL_PUT}")
        self._is_proven = True


class Lease:
    """A lock that this process holds; a thread renews it until `end`."""

    def __init__(self, store: "ObjectStore", key: str, where: str, seconds: float) -> None:
        self.key, self.where = key, where
        self._store, self._seconds = store, seconds
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4()}"
        self._beat = 0
        self._version: UpdateVersion = {}
        self._renewed = 0.0
        self._trouble: Exception | None = None
        self._is_lost = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {key}", daemon=True)

    def begin(self, mode: "PutMode") -> bool:
        """Write the lock's object under a condition; return whether the lock is now ours."""
        started = time.monotonic()
        version = put_if(self._store, self.key, self._content(), mode, self.where)
        if version is None:
            return False
        self._version, self._renewed = version, started
        self._thread.start()
        return True

    def require(self) -> None:
        """Raise `UserError` unless the lock is certainly still ours."""
        if self._is_lost:
            raise UserError(f"{self.where}: another process took this lock over; run the same command again")
        idle = time.monotonic() - self._renewed
        if idle >= self._seconds:
            why = f"{self.where}: this process could not renew its lock for {idle:.0f} s"
            raise UserError(f"{why} ({self._trouble}); run the same command again") from self._trouble

    def end(self) -> None:
        """Release the lock; where the store refuses, the lease expires by itself."""
        self._ending.set()
        self._thread.join()
        with suppress(UserError, FileNotFoundError):
            # The removal is unconditional, so it must come long before another process may take the lock over.
            if time.monotonic() - self._renewed >= self._seconds / 2:
                self._renew()
            self.require()
            ask(self.where, lambda: obstore.delete(self._store, self.key))

    def _keep(self) -> None:
        beat = pause = self._seconds / BEATS_A_LEASE
        while not self._is_lost and not self._ending.wait(pause):
            try:
                pause = beat if self._renew() else beat / 4
            except Exception as error:  # of any kind: `require` reports it in the thread that does the work
                self._trouble, pause = error, beat / 4

    def _renew(self) -> bool:
        """Rewrite the lock's object; return whether the first attempt succeeded."""
        started = time.monotonic()
        self._beat += 1
        version = put_if(self._store, self.key, self._content(), self._version, self.where)
        if version is not None:
            self._version, self._renewed = version, started
            return True
        # An earlier renewal that seemed to fail may have succeeded.
        found = _read(self._store, self.key, self.where)
        if found is not None and json.loads(found[0])["owner"] == self._owner:
            self._version = found[1]
        else:
            self._is_lost = True
        return False

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "beat": self._beat}).encode()


def put_if(store: "ObjectStore", key: str, data: bytes, mode: "PutMode", where: str) -> "UpdateVersion | None":
    """Put under a condition; the object's version, None where the condition failed.

    A put whose answer got lost may have come through, and its repetition then fails: the object itself tells.
    """
    try:
        return _version(ask(where, lambda: obstore.put(store, key, data, mode=mode, use_multipart=False)))
    except (AlreadyExistsError, PreconditionError):
        found = _read(store, key, where)
        return found[1] if found is not None and found[0] == data else None
    except UserError:
        found = _read(store, key, where)
        if found is None or found[0] != data:
            raise
        return found[1]


def read_version(store: "ObjectStore", key: str, where: str) -> "UpdateVersion | None":
    """The version of an object, None where there is none."""
    try:
        return _version(ask(where, lambda: obstore.head(store, key)))
    except FileNotFoundError:
        return None


def _read(store: "ObjectStore", key: str, where: str) -> "tuple[bytes, UpdateVersion] | None":
    def get() -> "tuple[bytes, UpdateVersion]":
        found = obstore.get(store, key)
        return bytes(found.bytes()), _version(found.meta)

    try:
        return ask(where, get)
    except FileNotFoundError:
        return None


def _version(meta: "PutResult | ObjectMeta") -> "UpdateVersion":
    """What a later condition may name; obstore does not take None there."""
    version: UpdateVersion = {}
    if meta["e_tag"] is not None:
        version["e_tag"] = meta["e_tag"]
    if meta["version"] is not None:
        version["version"] = meta["version"]
    return version
