"""What repair puts aside and what it leaves alone; builds of a real teacher are in tests/e2e/test_verify_repair.py."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheError
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.verify import repair as module
from teacher_cache.verify.objects import verify
from teacher_cache.verify.repair import repair
from tests.helpers.damageable import contents

SETTINGS = BuildSettings.model_validate({"teacher": {"model": "m"}, "corpus": {"source": "c"}, "rows": {"seq_len": 12}})
OBJECT = "tokens/c/1/0"


@pytest.fixture
def copy(synthetic_cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, synthetic_cache: Path) -> list[int]:
    """Stands for the build: it copies what is missing from the sound cache. The number of objects of each call."""
    calls: list[int] = []

    def build(group: object, settings: BuildSettings, path: Path) -> SimpleNamespace:
        missing = contents(synthetic_cache).keys() - contents(path).keys()
        for key in missing:
            shutil.copy(synthetic_cache / key, path / key)
        calls.append(len(missing))
        return SimpleNamespace(shards_built=1)

    monkeypatch.setattr(module, "build_in_group", build)
    monkeypatch.setattr(module, "settings_differences", lambda manifest, settings: [])
    return calls


def test_a_damaged_object_takes_its_whole_shard_aside(copy: Path, synthetic_cache: Path, built: list[int]) -> None:
    shard = {key for key in contents(copy) if "/c/1/" in key} | {commit_key(1)}
    (copy / OBJECT).write_bytes(b"damaged")
    report = repair(copy, SETTINGS)
    assert report.findings.is_sound
    assert sorted(report.quarantined) == sorted(shard)
    assert built == [len(shard)]
    assert contents(copy) == contents(synthetic_cache)
    assert report.folder is not None
    assert (Path(report.folder) / OBJECT).read_bytes() == b"damaged"


def test_each_repair_has_a_folder_of_its_own(copy: Path, built: list[int]) -> None:
    folders = []
    for _ in range(2):
        (copy / OBJECT).write_bytes(b"damaged")
        folders.append(Path(repair(copy, SETTINGS).folder or "").name)
    assert folders == ["0001", "0002"]


def test_the_commit_record_moves_before_its_objects(
    copy: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    move = LocalStore.move

    def noting(self: LocalStore, key: str, to: str) -> None:
        moved.append(key)
        move(self, key, to)

    monkeypatch.setattr(LocalStore, "move", noting)
    (copy / OBJECT).write_bytes(b"damaged")
    repair(copy, SETTINGS)
    assert moved[0] == commit_key(1)


def test_a_sound_cache_is_left_alone(copy: Path, built: list[int]) -> None:
    before = contents(copy)
    report = repair(copy, SETTINGS)
    assert (report.quarantined, report.shards_built, report.folder, built) == ([], 0, None, [])
    assert contents(copy) == before


def test_what_cannot_be_mended_ends_after_three_attempts(
    copy: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / OBJECT).write_bytes(b"damaged")
    monkeypatch.setattr(module, "build_in_group", lambda *_: SimpleNamespace(shards_built=0))
    report = repair(copy, SETTINGS)
    assert not report.findings.is_sound
    assert report.shards_built == 0
    assert not verify(LocalStore(copy)).is_sound


def test_other_settings_are_refused_before_anything_moves(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / OBJECT).write_bytes(b"damaged")
    before = contents(copy)
    monkeypatch.setattr(module, "settings_differences", lambda manifest, settings: ["rows.seq_len: 12, not 8"])
    with pytest.raises(CacheError, match=r"was made otherwise: rows\.seq_len: 12, not 8; give the settings"):
        repair(copy, SETTINGS)
    assert contents(copy) == before
