"""Files that are written whole or not at all, even when the writer is killed."""

import os
import secrets
from pathlib import Path

STAGING_PREFIX = ".staging-"
BLOCK_BYTES = 2**22
"""Bytes read at once from a file or object that is only scanned."""


def expand_home(path: Path | str) -> Path:
    """A path in which a leading `~` is the home folder, where there is one."""
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write to a temporary name beside `path`, flush to disk, rename. On an `OSError` the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staging_path(path)
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def staging_path(path: Path) -> Path:
    """A new name beside `path`. Unlike those of `tempfile`, what is made there is as readable as the umask allows."""
    return path.parent / f"{_staging_prefix(path)}{secrets.token_hex(8)}"


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left beside it. No writer of `path` may be running."""
    for staged in path.parent.glob(f"{_staging_prefix(path)}*"):
        staged.unlink(missing_ok=True)


def settle_on_disk(path: Path) -> int:
    """Flush a file that another library wrote, make it as readable as its folder; return its size in bytes."""
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _staging_prefix(path: Path) -> str:
    return f"{STAGING_PREFIX}{path.name}-"


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
