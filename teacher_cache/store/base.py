"""What every store offers: objects that are published whole or not at all, and locks."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import zarr.abc.store

URL = re.compile(r"\w+:/")
NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Store(Protocol):
    """Where a cache lies. Keys are relative paths with `/`; a name that begins with a dot is not listed as an object.

    A reader sees a published object whole or not at all, whenever the writer dies. A failure (a full disk, a refused
    request, a store that cannot be reached) raises `UserError` with a remedy.
    """

    @property
    def path(self) -> Path | str:
        """The folder or URL, as `open_store` takes it."""

    def where(self, key: str) -> str:
        """The full path or URL of an object, for messages; of the store itself for an empty key."""
        ...

    def exists(self) -> bool:
        """Whether the folder is there, or any object under the URL."""
        ...

    def names(self, folder: str = "") -> set[str]:
        """Names of the objects and folders directly in a folder; none if there is no such folder."""
        ...

    def publish(self, key: str, data: bytes | memoryview) -> None:
        """Make `data` the object at `key`."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Publish `data` at `key` unless an object is there already; return whether the object is now `data`.

        In a local folder the caller must hold a lock that keeps other writers of `key` away.
        """
        ...

    def read(self, key: str) -> bytes:
        """The whole object; raises `FileNotFoundError`."""
        ...

    def read_all(self, keys: Sequence[str]) -> Iterator[bytes]:
        """Several small objects whole, in order; raises `FileNotFoundError`."""
        ...

    def blocks(self, key: str) -> Iterator[bytes]:
        """The object block by block; raises `FileNotFoundError`."""
        ...

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, None where there is none."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Keys of all objects under a folder, at any depth, with their sizes in bytes."""
        ...

    def remove(self, key: str) -> None:
        """Remove an object if it is there."""
        ...

    def move(self, key: str, to: str) -> None:
        """Give an object another key; raises `FileNotFoundError`."""
        ...

    def remove_leftovers(self, key: str) -> None:
        """Remove unfinished files of writers of `key` that died; nobody else may be writing `key` now."""
        ...

    def lock(self, name: str, patience: float = 0.0) -> AbstractContextManager[bool]:
        """Hold the lock of this name within the block; yields False if another process kept it for `patience` seconds.

        A dead process's lock becomes free. Whoever gets a lock must check again whether the work is already done.
        Raises `UserError` when the lock was lost while it was held.
        """
        ...

    def is_abandoned(self, name: str) -> bool:
        """Whether no living process holds the lock of this name; finding out may take the length of a lease."""
        ...

    def clear_locks(self) -> None:
        """Remove what released locks leave behind, if nobody holds a lock."""
        ...

    def zarr(self) -> zarr.abc.store.Store:
        """The same objects as a read-only Zarr store."""
        ...


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL, and so means an object store."""
    return URL.match(str(path)) is not None


def read_if_there(store: Store, key: str) -> bytes | None:
    """The whole object, None where there is none."""
    try:
        return store.read(key)
    except NO_OBJECT:
        return None
