"""What a store is: objects published whole or not at all, and locks."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import zarr.abc.store

URL = re.compile(r"\w+:/")


NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Store(Protocol):
    """Where a cache is. Keys are relative paths with `/`; names that begin with a dot are nobody's objects.

    A reader sees a published object whole or not at all, whenever the writer dies. Whatever cannot be done raises
    `UserError` with a remedy.
    """

    @property
    def path(self) -> Path | str:
        """The folder or URL, as `open_store` takes it."""

    def where(self, key: str) -> str:
        """An object as a person finds it, for messages; the place itself where the key is empty."""
        ...

    def exists(self) -> bool:
        """Whether there is something to look at."""
        ...

    def names(self, folder: str = "") -> set[str]:
        """What lies directly in a folder."""
        ...

    def publish(self, key: str, data: bytes | memoryview) -> None:
        """Make `data` the object at `key`."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Make `data` the object at `key` unless there is another; whether the object is `data` now."""
        ...

    def read(self, key: str) -> bytes:
        """The whole object; raises `FileNotFoundError`."""
        ...

    def read_all(self, keys: Sequence[str]) -> Iterator[bytes]:
        """Small objects, in order; raises `FileNotFoundError`."""
        ...

    def blocks(self, key: str) -> Iterator[bytes]:
        """The object piece by piece; raises `FileNotFoundError`."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        ...

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every object under a folder, however deep: its key and its bytes."""
        ...

    def remove(self, key: str) -> None:
        """Remove an object if it is there."""
        ...

    def move(self, key: str, to: str) -> None:
        """Give an object another key; raises `FileNotFoundError`."""
        ...

    def remove_leftovers(self, key: str) -> None:
        """Remove what writers of `key` that died left unfinished; nobody else may be writing it."""
        ...

    def lock(self, name: str, patience: float = 0.0) -> AbstractContextManager[bool]:
        """Hold the lock of this name, or be told False when a living process holds it for so many seconds.

        Whoever gets one looks again whether the work is done.
        """
        ...

    def is_abandoned(self, name: str) -> bool:
        """Whether nobody alive holds the lock of this name, which may take a while to find out."""
        ...

    def clear_locks(self) -> None:
        """Remove what locks leave behind, if nobody holds one."""
        ...

    def zarr(self) -> zarr.abc.store.Store:
        """The same objects, as Zarr reads them."""
        ...


def is_url(path: str | Path) -> bool:
    """Whether a path is meant for an object store."""
    return URL.match(str(path)) is not None


def read_if_there(store: Store, key: str) -> bytes | None:
    """The whole object, None where there is none."""
    try:
        return store.read(key)
    except NO_OBJECT:
        return None
