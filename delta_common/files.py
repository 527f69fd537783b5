"""Files that are written whole or not at all, even when the writer is killed."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

STAGING_PREFIX = ".staging-"
MOST_DIGITS = 21
"""Of an integer of 64 bits, and its sign."""
BLOCK_BYTES = 2**22
"""Bytes read at once from a file or object that is only scanned."""


def expand_home(path: Path | str) -> Path:
    """A path in which a leading `~` is the home folder, where there is one."""
    return Path(os.path.expanduser(path))


def parse_json(data: bytes | str, *, parse_float: Callable[[str], float] = float) -> Any:
    """A JSON value that a file holds; raises `ValueError` also for endless nesting and for integers beyond 64 bits."""
    try:
        return json.loads(data, parse_float=parse_float, parse_int=_bounded_int)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _bounded_int(text: str) -> int:
    if len(text) > MOST_DIGITS or abs(number := int(text)) >= 2**64:
        raise ValueError(f"{text[:MOST_DIGITS]}… is too large a number")
    return number


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
