"""A cache is begun or continued by the same settings only; a shard counts when its commit record is there."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.build import writer as writer_module
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.build.writer import CacheWriter, environment, manifest_differences
from teacher_cache.format.arrays import row_specs
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheError
from teacher_cache.format.keys import GROUP_KEY
from teacher_cache.format.manifest import FORMAT_VERSION, Manifest
from teacher_cache.store.local import LocalStore
from tests.format.make_golden import KINDS as GOLDEN_KINDS
from tests.format.make_golden import SIZES as GOLDEN_SIZES
from tests.helpers.golden import changed, golden_cache

SIZES: dict[str, Any] = {
    "rows": 20,
    "seq_len": 12,
    "vocab_size": 300,
    "top_k": 8,
    "hidden_size": 16,
    "rows_per_shard": 8,
}


@pytest.fixture
def copy(synthetic_cache: Path, tmp_path: Path) -> Path:
    """A cache of one's own to damage."""
    return Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))


def test_a_grown_cache_keeps_its_whole_shards(copy: Path, synthetic_cache: Path) -> None:
    whole = (copy / commit_key(0)).stat().st_mtime_ns
    make_synthetic_cache(copy, **{**SIZES, "rows": 30})
    grown, before = open_cache(copy), open_cache(synthetic_cache)
    assert (copy / commit_key(0)).stat().st_mtime_ns == whole
    assert np.array_equal(grown.rows(range(20)).ids, before.rows(range(20)).ids)
    assert len(grown) == 30


@pytest.mark.parametrize("lost", [commit_key(1), GROUP_KEY])
def test_a_cache_stays_in_the_version_it_was_begun_in(lost: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(golden_cache("sampled"), tmp_path / "old"))
    whole, before = (path / commit_key(0)).read_bytes(), open_cache(path)
    (path / lost).unlink()
    make_synthetic_cache(path, **GOLDEN_SIZES, **GOLDEN_KINDS["v1-sampled"])
    after = open_cache(path)
    assert after.manifest == before.manifest
    assert after.manifest.format_version == 1
    assert (path / commit_key(0)).read_bytes() == whole


def test_a_cache_is_begun_in_the_newest_version(synthetic_cache: Path) -> None:
    assert open_cache(synthetic_cache).manifest.format_version == FORMAT_VERSION


def test_other_settings_are_refused_by_name(copy: Path) -> None:
    with pytest.raises(UserError, match=r"targets\.top_k: the cache has 8, these settings give 9"):
        make_synthetic_cache(copy, **{**SIZES, "top_k": 9})


def test_a_folder_with_other_content_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other content; choose another --out"):
        make_synthetic_cache(tmp_path, **SIZES)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


FILES = {"teacher/frozen.safetensors": b"weights"}


@pytest.fixture
def manifest(synthetic_cache: Path) -> Manifest:
    return open_cache(synthetic_cache).manifest


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "new")


def arrays_of(manifest: Manifest, shard: int, fill: int = 1) -> dict[str, NDArray[Any]]:
    rows = len(manifest.shard_rows(shard))
    return {spec.name: np.full((rows, *spec.row_shape), fill, spec.dtype) for spec in row_specs(manifest)}


def test_shards_are_pending_until_their_commit_record_is_there(manifest: Manifest, store: LocalStore) -> None:
    writer = CacheWriter.open(store, manifest, FILES)
    assert writer.pending_shards() == [0, 1, 2]
    record = writer.write_shard(1, arrays_of(manifest, 1), {"entries": 3.0}, {"torch": "x"})
    assert writer.pending_shards() == [0, 2]
    assert (record.first_row, record.rows, record.positions) == (8, 8, 8 * 12)
    assert (record.statistics, record.environment) == ({"entries": 3.0}, {"torch": "x"})
    assert all(store.size(key) == stored.bytes for key, stored in record.objects.items())
    assert open_cache(store.path, allow_unfinished=True).commits == {1: record}
    for shard in (0, 2):
        assert not writer.is_finished
        writer.write_shard(shard, arrays_of(manifest, shard), {}, {})
    assert writer.is_finished


def test_the_commit_record_is_published_last(
    manifest: Manifest, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CacheWriter.open(store, manifest, FILES)
    publish, published = LocalStore.publish, list[str]()

    def breaking(one: LocalStore, key: str, data: bytes) -> None:
        published.append(key)
        if len(published) == 3:
            raise OSError("the disk is full")
        publish(one, key, data)

    monkeypatch.setattr(LocalStore, "publish", breaking)
    with pytest.raises(OSError, match="full"):
        writer.write_shard(0, arrays_of(manifest, 0), {}, {})
    assert commit_key(0) not in published
    assert writer.pending_shards() == [0, 1, 2]


def test_a_shard_is_claimed_by_one_builder_and_never_when_it_is_done(manifest: Manifest, store: LocalStore) -> None:
    one, other = CacheWriter.open(store, manifest, FILES), CacheWriter.open(store, manifest, FILES)
    with one.claim(0) as mine, other.claim(0) as theirs, other.claim(1) as next_one:
        assert (mine, theirs, next_one) == (True, False, True)
        assert one.abandoned_shards() == [2]
        one.write_shard(0, arrays_of(manifest, 0), {}, {})
    assert one.abandoned_shards() == [1, 2]
    with other.claim(0) as again, other.claim(1) as left:
        assert (again, left) == (False, True)


def test_a_shard_committed_by_another_builder_must_have_the_same_bytes(manifest: Manifest, store: LocalStore) -> None:
    writer = CacheWriter.open(store, manifest, FILES)
    writer.write_shard(0, arrays_of(manifest, 0), {}, {})
    writer.write_shard(0, arrays_of(manifest, 0), {}, {"torch": "another"})
    with pytest.raises(
        CacheError, match=r"commits/00000.json: another builder has made this shard with other bytes; run"
    ):
        writer.write_shard(0, arrays_of(manifest, 0, fill=0), {}, {})


def test_metadata_is_published_with_the_group_last_and_mended(
    manifest: Manifest, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, publish = list[str](), LocalStore.publish

    def noted(one: LocalStore, key: str, data: bytes) -> None:
        published.append(key)
        publish(one, key, data)

    monkeypatch.setattr(LocalStore, "publish", noted)
    first = CacheWriter.open(store, manifest, FILES)
    assert published[-1] == GROUP_KEY
    assert set(published) == {GROUP_KEY, *first.manifest.files}
    published.clear()
    (Path(store.path) / "teacher/frozen.safetensors").write_bytes(b"damaged")
    assert CacheWriter.open(store, manifest, FILES).manifest == first.manifest
    assert published == ["teacher/frozen.safetensors"]


def test_a_builder_waits_for_the_metadata_and_says_so(
    manifest: Manifest, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "METADATA_PATIENCE", 0.1)
    with store.lock("metadata") as held:
        assert held
        with pytest.raises(CacheError, match="another builder holds its metadata; run the same command again"):
            CacheWriter.open(store, manifest, FILES)


def test_a_last_shard_of_another_length_is_built_anew(manifest: Manifest, store: LocalStore) -> None:
    writer = CacheWriter.open(store, manifest, FILES)
    for shard in range(3):
        writer.write_shard(shard, arrays_of(manifest, shard), {}, {})
    assert CacheWriter.open(store, changed(manifest, "rows", count=24), FILES).pending_shards() == [2]
    assert CacheWriter.open(store, changed(manifest, "rows", count=8), FILES).pending_shards() == []


def test_differences_name_key_and_values_but_no_number_of_rows(manifest: Manifest) -> None:
    assert manifest_differences(manifest, changed(manifest, "rows", count=999)) == []
    other = changed(changed(manifest, "rows", seq_len=13), "teacher", name="x")
    assert manifest_differences(manifest, other) == [
        "teacher.name: the cache has 'synthetic', these settings give 'x'",
        "rows.seq_len: the cache has 12, these settings give 13",
    ]


def test_the_environment_names_versions_and_hardware() -> None:
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found.keys() == {"python", "torch", "transformers", "zarr", "numcodecs", "device", "threads", "cores"}
    assert all(found.values())
