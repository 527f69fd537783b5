"""Commit records: a shard is finished once its record exists, which lists the shard's objects and digests."""

from collections.abc import Iterable

from pydantic import SerializerFunctionWrapHandler, model_serializer

from teacher_cache.format.arrays import array_specs
from teacher_cache.format.errors import REPAIR, CacheCorruptError
from teacher_cache.format.keys import COMMITS_FOLDER
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.sealed import Record, SealError, parse_sealed

REPORTED_TEMPERATURES = (1.0, 1.25, 1.5, 2.0)
"""Temperatures that statistics are recorded at, where they lie in the cached range."""


class StoredObject(Record):
    """Size in bytes and digest (xxh3-128, hexadecimal) of one object of a shard."""

    bytes: int
    xxh3_128: str


class CommitRecord(Record):
    """One shard's record, written after all its objects."""

    shard: int
    first_row: int
    rows: int
    positions: int
    """Number of positions whose loss_mask is true."""
    objects: dict[str, StoredObject]
    statistics: dict[str, float]
    """Sums over those positions; `build.statistics.ShardStatistics` lists the keys."""
    environment: dict[str, str]
    """Package versions, device and number of threads the shard was computed with."""
    identity: str
    """`Manifest.identity` of the cache the shard belongs to."""
    roles: dict[str, int] | None = None
    """Positions by the role of their label, see `format.arrays.ROLES`; None where documents are plain text."""

    @model_serializer(mode="wrap")
    def _without_what_text_lacks(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = write(self)
        if self.roles is None:
            del content["roles"]
        return content


def commit_key(shard: int) -> str:
    """Key of a shard's commit record."""
    return f"{COMMITS_FOLDER}/{shard:05d}.json"


def parse_commit(data: bytes, key: str, manifest: Manifest, where: str) -> CommitRecord:
    """The commit record stored at `key`; raises `CacheCorruptError` unless it is intact and belongs to this cache."""
    try:
        record = parse_sealed(CommitRecord, data)
    except SealError as error:
        raise CacheCorruptError(f"{where}: not a commit record: {error}; {REPAIR}") from error
    if record.identity != manifest.identity:
        raise CacheCorruptError(f"{where}: belongs to a cache made with other settings; {REPAIR}")
    if commit_key(record.shard) != key:
        raise CacheCorruptError(f"{where}: is the record of shard {record.shard}; {REPAIR}")
    if set(record.objects) != {spec.data_key(record.shard) for spec in array_specs(manifest)}:
        raise CacheCorruptError(f"{where}: lists other objects than a shard of this cache has; {REPAIR}")
    return record


def claimed_identity(data: bytes) -> str | None:
    """Identity of the cache that an intact commit record says it belongs to, None where it is not intact."""
    try:
        return parse_sealed(CommitRecord, data).identity
    except SealError:
        return None


def covers(record: CommitRecord, manifest: Manifest) -> bool:
    """Whether the record covers exactly its shard's rows: a cache may have grown or shrunk since it was written."""
    rows = manifest.shard_rows(record.shard)
    return record.shard < manifest.shard_count and (record.first_row, record.rows) == (rows.start, len(rows))


def mean_statistics(commits: Iterable[CommitRecord]) -> dict[str, float]:
    """Means of the statistics over all counted positions of these shards; empty if there are no positions."""
    totals: dict[str, float] = {}
    positions = 0
    for commit in commits:
        positions += commit.positions
        for name, value in commit.statistics.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: total / positions for name, total in totals.items()} if positions else {}
