"""The teacher's files of a cache as local files, for libraries that read files only."""

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from delta_common.errors import UserError
from delta_common.files import write_atomically
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.sealed import digest
from teacher_cache.store.base import Store
from teacher_cache.store.local import LocalStore
from teacher_cache.store.metadata import read_listed

FOLDER = "delta-cache"


def local_folder(store: Store, manifest: Manifest, keys: Sequence[str], *, check_digests: bool = True) -> Path:
    """A local folder with the objects at `keys`, which the manifest must list, as files of those names.

    For a local cache it is the cache itself. For a cache in an object store, files are downloaded once into
    `$XDG_CACHE_HOME/delta-cache/FINGERPRINT`, and their digests are checked at every use. Raises `CacheCorruptError`
    when an object is not what was written, and `UserError` when the folder cannot be written.
    """
    if isinstance(store, LocalStore):
        for key in keys if check_digests else ():
            read_listed(store, manifest, key)
        return store.root
    folder = _caches() / FOLDER / manifest.fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for key in keys:
                if not _is_there(folder / key, manifest.files.get(key)):
                    write_atomically(folder / key, read_listed(store, manifest, key))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another") from error
    return folder


def _is_there(path: Path, written: str | None) -> bool:
    return path.is_file() and digest(path.read_bytes()) == written


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
