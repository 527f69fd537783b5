"""A cache's objects in a local folder: published whole or not at all, with a digest of each."""

import errno
from pathlib import Path

import xxhash

from cli_common.errors import UserError
from cli_common.files import write_atomically


def digest(data: bytes) -> str:
    """xxh3-128 in hexadecimal: what commit records and the manifest name objects by."""
    return xxhash.xxh3_128_hexdigest(data)


class LocalStore:
    """Objects under one folder; keys are relative paths with `/`.

    A reader sees a published object whole or not at all, whenever the writer dies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, key: str, data: bytes) -> None:
        """Make `data` the object at `key`. Raises `UserError` on a full disk or a refused write."""
        target = self.root / key
        try:
            write_atomically(target, data)
        except OSError as error:
            raise UserError(_write_failure(target, error)) from error

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def size(self, key: str) -> int:
        return (self.root / key).stat().st_size

    def remove(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def keys(self, folder: str) -> list[str]:
        """Keys directly in a folder, sorted; temporary files of interrupted writers are not listed."""
        path = self.root / folder
        if not path.is_dir():
            return []
        return sorted(f"{folder}/{f.name}" for f in path.iterdir() if f.is_file() and f.name[0] != ".")


def _write_failure(target: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{target}: the disk is full; free space and run the same command again, finished shards are kept"
    return f"{target}: cannot be written ({error.strerror}); choose another --out or mend the folder"
