"""Memory stays flat over time, whatever the number of shards."""

from pathlib import Path

import pytest

from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.build.writer import CacheWriter
from teacher_cache.format.commits import CommitRecord
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import verify

SIZES = {"seq_len": 64, "vocab_size": 500, "top_k": 8, "samples": 24, "hidden_size": 256, "rows_per_shard": 8}
SHARD_MEGABYTES = 8 * 64 * (256 * 2 + 32 * 6 + 5 * 4) / 2**20
SETTLED = 15
"""Shards after which allocators and caches have what they want."""


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def assert_flat(megabytes: list[float]) -> None:
    early = max(megabytes[SETTLED : SETTLED + 5])
    late = max(megabytes[-5:])
    kept = (late - early) / (len(megabytes) - SETTLED)
    assert kept < 0.1 * SHARD_MEGABYTES, f"{kept:.3f} MB a shard of {SHARD_MEGABYTES:.2f} MB stay: {megabytes}"


def test_building_and_reading_keep_nothing_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building: list[float] = []
    write = CacheWriter.write_shard

    def watched(writer: CacheWriter, *arguments: object) -> CommitRecord:
        record = write(writer, *arguments)  # type: ignore[arg-type]
        building.append(resident_megabytes())
        return record

    monkeypatch.setattr(CacheWriter, "write_shard", watched)
    path = make_synthetic_cache(tmp_path / "cache", rows=8 * 60, **SIZES)
    assert_flat(building)
    cache, reading = open_cache(path), []
    for shard in cache.shards:
        cache.rows(shard)
        reading.append(resident_megabytes())
    assert_flat(reading)


def test_verify_holds_a_block_and_not_a_cache(tmp_path: Path) -> None:
    path = make_synthetic_cache(tmp_path / "cache", rows=8, **{**SIZES, "rows_per_shard": 8})
    manifest = open_cache(path).manifest
    large = path / "hidden/mean/c/0/0/0"
    with large.open("r+b") as file:
        file.truncate(400 * 2**20)  # a hole in the file: no room on the disk
    record = (path / "commits/00000.json").read_text()
    assert manifest.shard_count == 1
    assert "hidden/mean/c/0/0/0" in record
    before = resident_megabytes()
    findings = verify(LocalStore(path))
    assert [fault.kind for fault in findings.faults] == ["size"]
    assert sum(len(block) for block in LocalStore(path).blocks("hidden/mean/c/0/0/0")) == 400 * 2**20
    assert resident_megabytes() - before < 40
