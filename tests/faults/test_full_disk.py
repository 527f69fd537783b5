"""Writes that fail: one line, nothing lost, and the same bytes once there is room."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from delta_common.errors import UserError
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import verify
from tests.helpers.damageable import SIZES, contents


class FailingWrites:
    """Stands in for `os.fsync`: the n-th flush, when the data is half on its way, fails with an errno."""

    def __init__(self, number: int, code: int) -> None:
        self.seen, self._number, self._code = 0, number, code

    def __call__(self, handle: int) -> None:
        self.seen += 1
        if self.seen == self._number:
            if os.path.isfile(f"/proc/self/fd/{handle}"):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            raise OSError(self._code, os.strerror(self._code))


def count_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    counter = FailingWrites(0, 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", counter)
        make_synthetic_cache(tmp_path / "counted", **SIZES)
    return counter.seen


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free space and run the same command again"),
        (errno.EIO, "cannot be written"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_a_failure_in_any_write_loses_nothing(
    sound_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    flushes = count_flushes(tmp_path, monkeypatch)
    assert flushes > 60
    step = 1 if code == errno.ENOSPC else 7
    for number in range(1, flushes + 1, step):
        path = tmp_path / f"cache-{number}"
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", FailingWrites(number, code))
            with pytest.raises(UserError, match=words):
                make_synthetic_cache(path, **SIZES)
        assert not [p.name for p in path.rglob(".staging-*")]
        make_synthetic_cache(path, **SIZES)
        assert contents(path) == contents(sound_cache), f"write {number}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 96 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_one_line_and_the_build_goes_on_later(
    small_disk: Path, sound_cache: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(60 * 1024))
    with pytest.raises(UserError, match="the disk is full; free space and run the same command again"):
        make_synthetic_cache(small_disk / "cache", **SIZES)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    make_synthetic_cache(small_disk / "cache", **SIZES)
    assert contents(small_disk / "cache") == contents(sound_cache)


def test_a_clock_that_goes_back_changes_nothing(
    sound_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_synthetic_cache(tmp_path / "cache", **{**SIZES, "rows": 4})
    future = time.time() + 10 * 365 * 86400
    for file in path.rglob("*"):
        os.utime(file, (future, future))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    make_synthetic_cache(path, **SIZES)
    assert contents(path) == contents(sound_cache)
    assert verify(LocalStore(path)).is_sound
