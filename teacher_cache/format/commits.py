"""Commit records: a shard counts when its record exists, and the record says what the shard's objects are."""

from collections.abc import Iterable
from typing import Any

from teacher_cache.format.arrays import array_specs
from teacher_cache.format.errors import REPAIR, CacheCorruptError
from teacher_cache.format.keys import COMMITS_FOLDER
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.sealed import Record, SealError, parse_sealed


class StoredObject(Record):
    """One object of a shard: its size and digest (xxh3-128, hexadecimal)."""

    bytes: int
    xxh3_128: str


class CommitRecord(Record):
    """Written last: the shard counts only when this exists."""

    shard: int
    first_row: int
    rows: int
    positions: int
    """Positions whose loss_mask is true."""
    objects: dict[str, StoredObject]
    statistics: dict[str, float]
    """Sums over the shard's counted positions, see `build.statistics.ShardStatistics`."""
    environment: dict[str, str]
    """Versions, device and threads the shard was computed with."""
    identity: str
    """`Manifest.identity` of the cache that the shard belongs to."""


def commit_key(shard: int) -> str:
    """Key of a shard's commit record."""
    return f"{COMMITS_FOLDER}/{shard:05d}.json"


def parse_commit(data: bytes, key: str, manifest: Manifest, where: str) -> CommitRecord:
    """Commit record stored at `key`; raises `CacheCorruptError` unless it is this cache's and says so itself."""
    try:
        record = parse_sealed(CommitRecord, data)
    except SealError as error:
        raise CacheCorruptError(f"{where}: not a commit record: {error}; {REPAIR}") from error
    if record.identity != manifest.identity:
        raise CacheCorruptError(f"{where}: belongs to a cache made with other settings; {REPAIR}")
    if commit_key(record.shard) != key:
        raise CacheCorruptError(f"{where}: is the record of shard {record.shard}; {REPAIR}")
    if set(record.objects) != {spec.data_key(record.shard) for spec in array_specs(manifest)}:
        raise CacheCorruptError(f"{where}: names other objects than a shard of this cache has; {REPAIR}")
    return record


def covers(record: CommitRecord, manifest: Manifest) -> bool:
    """Whether the record's rows are those of its shard now: a cache may grow or shrink at its end."""
    rows = manifest.shard_rows(record.shard)
    return record.shard < manifest.shard_count and (record.first_row, record.rows) == (rows.start, len(rows))


REPORTED_TEMPERATURES = (1.0, 1.25, 1.5, 2.0)


def mean_statistics(commits: Iterable[CommitRecord]) -> dict[str, float]:
    """Means over every counted position of the shards given; empty when there is none."""
    totals: dict[str, Any] = {}
    positions = 0
    for commit in commits:
        positions += commit.positions
        for name, value in commit.statistics.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: total / positions for name, total in totals.items()} if positions else {}
