"""Every object is looked at: missing, cut, changed, unnamed ones and records that contradict the manifest are found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from teacher_cache.format.commits import commit_key, parse_commit
from teacher_cache.format.errors import CacheFormatError
from teacher_cache.format.keys import CORPUS_ROWS_KEY
from teacher_cache.format.sealed import seal
from teacher_cache.read.cache import open_cache
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import Fault, Findings, verify
from tests.helpers.damageable import contents

OBJECT = "logits/ids/c/1/0/0"


@pytest.fixture
def copy(synthetic_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))


def test_a_sound_cache_has_every_object_counted(synthetic_cache: Path) -> None:
    findings = verify(LocalStore(synthetic_cache))
    files = contents(synthetic_cache)
    assert findings.is_sound
    assert (findings.shards_done, findings.shards_planned) == (3, 3)
    assert findings.objects == len(files)
    listed = {key for key in files if key != "zarr.json" and not key.startswith("commits/")}
    assert findings.bytes == sum(len(files[key]) for key in listed)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("key", "harm", "kind", "shard"),
    [
        (OBJECT, cut, "size", 1),
        (OBJECT, flip, "digest", 1),
        (OBJECT, lose, "missing", 1),
        ("tokens/zarr.json", flip, "digest", None),
        ("tokens/zarr.json", lose, "missing", None),
        (commit_key(2), flip, "commit", 2),
        (commit_key(2), lose, "unbuilt", 2),
        ("zarr.json", flip, "metadata", None),
        ("zarr.json", lose, "missing", None),
    ],
)
def test_one_damaged_object_is_one_fault(
    copy: Path, key: str, harm: Callable[[Path], None], kind: str, shard: int | None
) -> None:
    harm(copy / key)
    (fault,) = verify(LocalStore(copy)).faults
    assert (fault.kind, fault.key, fault.shard) == (kind, key, shard)


def test_faults_of_several_objects_come_together_and_sound_records_still_count(copy: Path) -> None:
    lose(copy / commit_key(0))
    cut(copy / OBJECT)
    (copy / "notes.txt").write_text("mine")
    findings = verify(LocalStore(copy))
    assert [(fault.kind, fault.key) for fault in findings.faults] == [
        ("unbuilt", commit_key(0)),
        ("stray", "notes.txt"),
        ("size", OBJECT),
    ]
    assert findings.shards_done == 2


def test_objects_of_a_shard_without_a_record_are_no_strays(copy: Path) -> None:
    lose(copy / commit_key(1))
    assert [fault.kind for fault in verify(LocalStore(copy)).faults] == ["unbuilt"]


def test_a_record_of_another_shard_is_a_fault(copy: Path) -> None:
    shutil.copy(copy / commit_key(0), copy / commit_key(1))
    (fault,) = verify(LocalStore(copy)).faults
    assert (fault.kind, fault.shard) == ("commit", 1)


def test_a_record_of_fewer_rows_than_its_shard_is_a_fault(copy: Path) -> None:
    store, key = LocalStore(copy), commit_key(1)
    record = parse_commit(store.read(key), key, open_cache(copy).manifest, key)
    store.publish(key, seal(record.model_copy(update={"rows": record.rows - 1})))
    findings = verify(store)
    assert findings.faults == [Fault("commit", key, 1, "covers 7 rows from 8")]
    assert findings.shards_done == 2


def test_a_damaged_bookmark_is_a_hint_that_builds_ignore(copy: Path) -> None:
    bookmark = copy / CORPUS_ROWS_KEY
    bookmark.parent.mkdir(parents=True, exist_ok=True)
    bookmark.write_text("{}")
    findings = verify(LocalStore(copy))
    assert [(fault.kind, fault.key) for fault in findings.faults] == [("hint", CORPUS_ROWS_KEY)]


def test_an_object_that_cannot_be_read_is_a_fault(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = LocalStore.blocks

    def failing(self: LocalStore, key: str) -> object:
        if key == OBJECT:
            raise OSError(5, "Input/output error")
        return blocks(self, key)

    monkeypatch.setattr(LocalStore, "blocks", failing)
    assert verify(LocalStore(copy)).faults == [
        Fault("digest", OBJECT, 1, "cannot be read (Input/output error)"),
    ]


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="no teacher cache here"):
        verify(LocalStore(tmp_path))


def test_findings_are_json() -> None:
    findings = Findings(Path("here"), [Fault("size", "a", 1, "too short")], measures={"alignment": {-1: 0.5}})
    said = json.loads(json.dumps(findings.to_json()))
    assert said["path"] == "here"
    assert not said["sound"]
    assert said["faults"] == [{"kind": "size", "key": "a", "shard": 1, "problem": "too short"}]
    assert said["measures"] == {"alignment": {"-1": 0.5}}
