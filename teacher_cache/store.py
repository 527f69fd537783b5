"""A cache's objects in a local folder: published whole or not at all, and locked while somebody makes them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zarr.storage
from filelock import FileLock, Timeout

from cli_common.errors import UserError
from cli_common.files import remove_leftovers, write_atomically

LOCKS_FOLDER = ".locks"
BLOCK_BYTES = 2**22
"""Read at once where an object is only looked through."""


class LocalStore:
    """Objects under one folder; keys are relative paths with `/`. Names that begin with a dot are nobody's objects.

    A reader sees a published object whole or not at all, whenever the writer dies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, key: str) -> str:
        """An object as a person finds it, for messages."""
        return str(self.root / key)

    def publish(self, key: str, data: bytes) -> None:
        """Make `data` the object at `key`. Raises `UserError` on a full disk or a refused write."""
        with self._failures_named(key):
            write_atomically(self.root / key, data)

    def read(self, key: str) -> bytes:
        """The whole object; raises `FileNotFoundError`."""
        return (self.root / key).read_bytes()

    def blocks(self, key: str) -> Iterator[bytes]:
        """The object piece by piece; raises `FileNotFoundError`."""
        with (self.root / key).open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Every object under a folder, however deep: its key and its bytes."""
        found = {}
        for path, folders, names in os.walk(self.root / folder):
            folders[:] = [name for name in folders if name[0] != "."]
            for name in names:
                if name[0] != ".":
                    file = Path(path, name)
                    found[file.relative_to(self.root).as_posix()] = file.lstat().st_size
        return found

    def remove(self, key: str) -> None:
        """Remove an object if it is there."""
        (self.root / key).unlink(missing_ok=True)

    def move(self, key: str, to: str) -> None:
        """Give an object another key; raises `FileNotFoundError`."""
        with self._failures_named(to):
            target = self.root / to
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / key, target)

    def remove_leftovers(self, key: str) -> None:
        """Remove what writers of `key` that died left unfinished; nobody else may be writing it."""
        remove_leftovers(self.root / key)

    @contextmanager
    def lock(self, name: str, patience: float = 0.0) -> Iterator[bool]:
        """Hold the lock of this name, or be told False when a living process holds it for so many seconds.

        The system lets a lock go when its process dies. Whoever gets one looks again whether the work is done.
        """
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
                # A contender that opened the file before it went sees that, and makes it anew.
                path.unlink(missing_ok=True)
                lock.release()

    def clear_locks(self) -> None:
        """Remove the folder of locks if nobody holds one."""
        folder = self.root / LOCKS_FOLDER
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)

    def zarr(self) -> zarr.storage.LocalStore:
        """The same objects, as Zarr reads them."""
        return zarr.storage.LocalStore(self.root, read_only=True)

    @contextmanager
    def _failures_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(_write_failure(self.where(key), error)) from error


def _write_failure(target: str, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{target}: the disk is full; free space and run the same command again, finished shards are kept"
    return f"{target}: cannot be written ({error.strerror}); choose another --out or mend the folder"
