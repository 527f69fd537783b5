"""A cache's objects in S3, Google Cloud Storage or Azure, accessed through obstore."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import obstore
import zarr.storage
from obstore.store import AzureStore, GCSStore, S3Store
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.storage import WrapperStore

from delta_common.errors import UserError
from delta_common.files import BLOCK_BYTES
from teacher_cache.format.keys import LOCKS_FOLDER
from teacher_cache.store.failures import PREFIXES, ask, failures_named
from teacher_cache.store.leases import BEATS_A_LEASE, Lease, Locks, put_if

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

STORES: dict[str, type[S3Store] | type[GCSStore] | type[AzureStore]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "proxy_excludes")
READS_AT_ONCE = 16


@dataclass(frozen=True)
class Patience:
    """How long to wait for an object store, in seconds."""

    lease: float = 60.0
    """Length of a lock's lease; must be the same for all builders of a cache."""
    silence: float = 30.0
    """Longest pause within a response."""
    outage: float = 180.0
    """Failed reads are retried for this long; writes for one lease only, as the lock may be another's after it."""


PATIENCE = Patience()


class ObjectStore:
    """Objects under one URL. Locks are leases, see `store.leases`; losing one makes the next write raise `UserError`.

    Credentials and endpoint come from the environment, as obstore reads it (AWS_*, GOOGLE_*, AZURE_*).
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.path = url.rstrip("/")
        patience = patience or PATIENCE
        self._reads = _client(self.path, tries=10, outage=patience.outage, silence=patience.silence)
        self._writes = _client(self.path, tries=10, outage=patience.lease, silence=patience.silence)
        beat = patience.lease / BEATS_A_LEASE
        self._hasty = _client(self.path, tries=6, outage=2 * beat, silence=beat)
        self._locks = Locks(self._hasty, self.path, patience.lease)
        self._held: set[Lease] = set()

    def where(self, key: str) -> str:
        return f"{self.path}/{key}" if key else self.path

    def exists(self) -> bool:
        # The first request to a store: wrong settings should fail within seconds.
        return ask(self.path, lambda: next(iter(obstore.list(self._hasty, chunk_size=1)), None)) is not None

    def names(self, folder: str = "") -> set[str]:
        found = ask(self.where(folder), lambda: obstore.list_with_delimiter(self._reads, folder))
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return {name for name in (path.rpartition("/")[2] for path in paths) if name[0] != "."}

    def publish(self, key: str, data: bytes | memoryview) -> None:
        self._require_locks()
        ask(self.where(key), lambda: obstore.put(self._writes, key, data))

    def create(self, key: str, data: bytes) -> bool:
        self._require_locks()
        return put_if(self._writes, key, data, "create", self.where(key)) is not None

    def read(self, key: str) -> bytes:
        return ask(self.where(key), lambda: bytes(obstore.get(self._reads, key).bytes()))

    def read_all(self, keys: Sequence[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(READS_AT_ONCE) as threads:
            yield from threads.map(self.read, keys)

    def blocks(self, key: str) -> Iterator[bytes]:
        with failures_named(self.where(key)):
            for block in obstore.get(self._reads, key).stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)

    def size(self, key: str) -> int | None:
        try:
            return ask(self.where(key), lambda: obstore.head(self._reads, key))["size"]
        except FileNotFoundError:
            return None

    def sizes(self, folder: str = "") -> dict[str, int]:
        found = ask(self.where(folder), lambda: obstore.list(self._reads, folder or None).collect())
        return {meta["path"]: meta["size"] for meta in found if not _is_hidden(meta["path"].removeprefix(folder))}

    def remove(self, key: str) -> None:
        self._require_locks()
        with suppress(FileNotFoundError):
            ask(self.where(key), lambda: obstore.delete(self._writes, key))

    def move(self, key: str, to: str) -> None:
        ask(self.where(key), lambda: obstore.copy(self._writes, key, to))
        self.remove(key)

    def remove_leftovers(self, key: str) -> None:
        """Nothing to do: an unfinished put leaves nothing that can be seen."""

    @contextmanager
    def lock(self, name: str, patience: float = 0.0) -> Iterator[bool]:
        lease = self._locks.acquire(_lock_key(name), patience)
        if lease is None:
            yield False
            return
        self._held.add(lease)
        try:
            yield True
            lease.require()
        finally:
            self._held.discard(lease)
            lease.end()

    def is_abandoned(self, name: str) -> bool:
        return self._locks.is_abandoned(_lock_key(name))

    def clear_locks(self) -> None:
        """Nothing to do: a released lock's object is removed, and one left behind expires."""

    def zarr(self) -> ZarrStore:
        return _NamedFailures(zarr.storage.ObjectStore(self._reads, read_only=True), self)

    def _require_locks(self) -> None:
        for lease in tuple(self._held):
            lease.require()


class _NamedFailures(WrapperStore[ZarrStore]):
    """The Zarr store of an `ObjectStore`, whose failures are one-line `UserError`s too."""

    def __init__(self, store: ZarrStore, objects: ObjectStore) -> None:
        super().__init__(store)
        self._objects = objects

    def _with_store(self, store: ZarrStore) -> "_NamedFailures":
        return _NamedFailures(store, self._objects)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with failures_named(self._objects.where(key)):
            return await self._store.get(key, prototype, byte_range)


def _client(url: str, *, tries: int, outage: float, silence: float) -> S3Store | GCSStore | AzureStore:
    """An obstore client that retries server errors, timeouts and dropped connections with growing pauses."""
    scheme, _, place = url.partition("://")
    bucket, _, prefix = place.partition("/")
    # Options passed here replace those that obstore would read from the environment, so pass those on too.
    options: dict[str, object] = {
        name: os.environ[variable]
        for name in CLIENT_OPTIONS
        if (variable := f"{PREFIXES[scheme]}_{name.upper()}") in os.environ
    }
    # A large object may take longer than the 30 seconds that obstore gives a request.
    options |= {"timeout": timedelta(hours=1), "read_timeout": timedelta(seconds=silence)}
    retries: RetryConfig = {
        "max_retries": tries,
        "retry_timeout": timedelta(seconds=outage),
        "backoff": {
            "init_backoff": timedelta(seconds=outage / 600),
            "max_backoff": timedelta(seconds=outage / 12),
            "base": 2,
        },
    }
    if not bucket:
        raise UserError(f"{url}: names no bucket; write {scheme}://BUCKET/PREFIX")
    with failures_named(url):
        client_options = cast("ClientConfig", options)
        return STORES[scheme](bucket, prefix=prefix or None, client_options=client_options, retry_config=retries)


def _lock_key(name: str) -> str:
    return f"{LOCKS_FOLDER}/{name}"


def _is_hidden(path: str) -> bool:
    return any(name[:1] == "." for name in path.split("/"))
