"""Files that are there whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from delta_common.files import (
    STAGING_PREFIX,
    parse_json,
    remove_leftovers,
    settle_on_disk,
    staging_path,
    write_atomically,
)


def test_a_file_is_written_into_folders_that_were_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"first")
    write_atomically(path, memoryview(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize(
    ("umask", "folders", "files"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0, 0o777, 0o666)]
)
def test_what_is_written_is_as_readable_as_the_umask_allows(
    tmp_path: Path, umask: int, folders: int, files: int
) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "new" / "file", b"1")
        (tmp_path / "new" / "private").touch(0o600)
        settle_on_disk(tmp_path / "new" / "private")
        staging_path(tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"new": folders, "file": files, "private": files, staged_name(tmp_path): folders}


def staged_name(folder: Path) -> str:
    (name,) = (path.name for path in folder.iterdir() if path.name.startswith(f"{STAGING_PREFIX}folder-"))
    return name


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("delta_common.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("delta_common.files.os.fsync", lambda _: steps.append("flush"))
    rename = os.replace
    monkeypatch.setattr("delta_common.files.os.replace", lambda *names: (steps.append("rename"), rename(*names)))
    write_atomically(tmp_path / "file", b"x")
    assert steps == ["flush", "rename", "flush"]


def test_leftovers_of_one_file_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (f"{STAGING_PREFIX}file-abc", f"{STAGING_PREFIX}other-abc", "file"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == [f"{STAGING_PREFIX}other-abc", "file"]


def test_a_file_of_another_writer_is_flushed_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("delta_common.files.os.fsync", flushed.append)
    (tmp_path / "file").write_bytes(b"12345")
    assert settle_on_disk(tmp_path / "file") == 5
    assert len(flushed) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000 + "]" * 100_000, '{"a": ' * 100_000, "9" * 5_000, "9" * 4_000, str(2**64), str(-(2**64)), "{"],
)
def test_absurd_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|too large a number|Expecting"):
        parse_json(text)


def test_json_is_read_as_python_reads_it() -> None:
    for value in (None, {"a": [1.5, True, "ü"]}, [2**64 - 1, -(2**63), 0]):
        assert parse_json(json.dumps(value)) == parse_json(json.dumps(value).encode()) == value
    assert parse_json("[0.10]", parse_float=lambda text: float(len(text))) == [4.0]
