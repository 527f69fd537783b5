"""A store in a local folder."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import zarr.abc.store
import zarr.storage
from filelock import FileLock, Timeout

from delta_common.errors import UserError, cannot_be_read
from delta_common.files import BLOCK_BYTES, remove_leftovers, write_atomically
from teacher_cache.format.errors import CacheError
from teacher_cache.format.keys import LOCKS_FOLDER
from teacher_cache.store.base import NO_OBJECT, read_if_there


class LocalStore:
    """Objects as files under one folder; the operating system frees the locks of a process that dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path.absolute()
        """`path` made absolute, so that a change of the current folder does not matter."""

    def where(self, key: str) -> str:
        return str(self.path / key)

    def exists(self) -> bool:
        with self._unreadable_named(""):
            return self.root.exists()

    def names(self, folder: str = "") -> set[str]:
        place = self.root / folder
        with self._unreadable_named(folder):
            if not place.exists():
                return set()
            if not place.is_dir():
                raise CacheError(f"{self.where(folder)}: a file, not a folder; choose another --out")
            return {found.name for found in place.iterdir() if found.name[0] != "."}

    def publish(self, key: str, data: bytes | memoryview) -> None:
        with self._failures_named(key):
            write_atomically(self.root / key, data)

    def create(self, key: str, data: bytes) -> bool:
        # Nothing here is atomic: the caller's lock keeps other writers of the key away.
        found = read_if_there(self, key)
        if found is None:
            self.publish(key, data)
        return found in (None, data)

    def read(self, key: str) -> bytes:
        with self._unreadable_named(key):
            return (self.root / key).read_bytes()

    def read_all(self, keys: Sequence[str]) -> Iterator[bytes]:
        return map(self.read, keys)

    def blocks(self, key: str) -> Iterator[bytes]:
        with (self.root / key).open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def size(self, key: str) -> int | None:
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def sizes(self, folder: str = "") -> dict[str, int]:
        found = {}
        for path, folders, names in os.walk(self.root / folder, onerror=_unreadable):
            folders[:] = [name for name in folders if name[0] != "."]
            for name in names:
                if name[0] != ".":
                    file = Path(path, name)
                    found[file.relative_to(self.root).as_posix()] = file.lstat().st_size
        return found

    def remove(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def move(self, key: str, to: str) -> None:
        with self._failures_named(to):
            target = self.root / to
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / key, target)

    def remove_leftovers(self, key: str) -> None:
        remove_leftovers(self.root / key)

    @contextmanager
    def lock(self, name: str, patience: float = 0.0) -> Iterator[bool]:
        path = self.root / LOCKS_FOLDER / f"{name}.lock"
        with self._failures_named(f"{LOCKS_FOLDER}/{name}.lock"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=patience)
            with suppress(Timeout):
                lock.acquire()
        try:
            yield lock.is_locked
        finally:
            if lock.is_locked:
                # A contender that opened the file before it was removed notices, and creates it anew.
                path.unlink(missing_ok=True)
                lock.release()

    def is_abandoned(self, name: str) -> bool:
        with self.lock(name) as held:
            return held

    def clear_locks(self) -> None:
        folder = self.root / LOCKS_FOLDER
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)

    def zarr(self) -> zarr.abc.store.Store:
        return zarr.storage.LocalStore(self.root, read_only=True)

    @contextmanager
    def _unreadable_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except NO_OBJECT:
            raise
        except OSError as error:
            raise cannot_be_read(self.where(key), error) from error

    @contextmanager
    def _failures_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(_write_failure(self.where(key), error)) from error


def _unreadable(error: OSError) -> None:
    if not isinstance(error, NO_OBJECT):
        raise cannot_be_read(error.filename, error) from error


def _write_failure(target: str, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"{target}: {error.strerror}; choose a shorter --out"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{target}: the disk is full; free space and run the same command again, finished shards are kept"
    return f"{target}: cannot be written ({error.strerror}); choose another --out or make the folder writable"
