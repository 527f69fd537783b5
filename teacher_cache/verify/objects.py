"""Whether a cache is what was written: every object there, in its size, with its digest, and nothing between them.

`verify` looks at bytes; what they say is looked at by `verify_content`, whether it is true by `verify_teacher`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from teacher_cache.corpus.bookmarks import is_hint_key, unsound_hints
from teacher_cache.format.arrays import array_specs
from teacher_cache.format.commits import CommitRecord, commit_key, covers, parse_commit
from teacher_cache.format.errors import CacheCorruptError, CacheFormatError
from teacher_cache.format.keys import COMMITS_FOLDER, GROUP_KEY, is_metadata_key
from teacher_cache.format.manifest import Manifest
from teacher_cache.store.base import Store
from teacher_cache.store.metadata import check_metadata, read_manifest

Kind = Literal["metadata", "commit", "missing", "size", "digest", "hint", "stray", "unbuilt", "content", "teacher"]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: an object, the shard it belongs to if it does, and what is wrong."""

    kind: Kind
    key: str
    shard: int | None
    problem: str


@dataclass
class Findings:
    """What a verification has looked at and found."""

    path: Path | str
    faults: list[Fault] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    shards_done: int = 0
    shards_planned: int = 0
    seconds: float = 0.0
    measures: dict[str, Any] = field(default_factory=dict)
    """What deeper looks have measured: the alignment probe, the distance to the teacher and its control."""

    @property
    def is_sound(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sound": self.is_sound,
            **{k: v for k, v in asdict(self).items() if k != "path"},
        }


def verify(store: Store) -> Findings:
    """Look at every object of a cache.

    Raises `CacheFormatError` when there is no cache to look at, or one of another format version.
    """
    started = time.monotonic()
    findings = Findings(store.path)
    sizes = store.sizes()
    manifest = _manifest(store, sizes, findings.faults)
    if manifest is not None:
        findings.shards_planned = manifest.shard_count
        records = dict(_commits(store, manifest, sizes, findings.faults))
        findings.shards_done = len(records)
        expected = _expected(manifest, records)
        findings.faults += _unlisted(manifest, sizes, expected)
        hints = [key for key in sizes if is_hint_key(key)]
        findings.faults += _hint_faults(store, manifest, hints)
        for key, (shard, size, digest) in expected.items():
            fault = _object_fault(store, key, shard, size, digest, sizes)
            if fault is not None:
                findings.faults.append(fault)
        findings.objects = len(expected) + len(records) + len(hints) + 1
        findings.bytes = sum(sizes.get(key, 0) for key in [*expected, *hints])
    findings.seconds = time.monotonic() - started
    return findings


def _manifest(store: Store, sizes: dict[str, int], faults: list[Fault]) -> Manifest | None:
    try:
        manifest = read_manifest(store)
        if manifest is None and not any(key.startswith(f"{COMMITS_FOLDER}/") for key in sizes):
            raise CacheFormatError(f"{store.path}: no teacher cache here; give the folder that build wrote")
        if manifest is None:
            faults.append(Fault("missing", GROUP_KEY, None, "the manifest is missing"))
    except CacheCorruptError as error:
        faults.append(Fault("metadata", GROUP_KEY, None, str(error)))
        return None
    if manifest is not None:
        faults += _metadata_faults(store, manifest)
    return manifest


def _metadata_faults(store: Store, manifest: Manifest) -> Iterator[Fault]:
    """Arrays whose metadata, intact to the byte, says something else than the manifest; only hostile hands do that."""
    try:
        check_metadata(store, manifest)
    except CacheCorruptError as error:
        if all(not _is_damaged(store, key, found) for key, found in manifest.files.items() if is_metadata_key(key)):
            yield Fault("metadata", GROUP_KEY, None, str(error))


def _is_damaged(store: Store, key: str, found: str) -> bool:
    return store.size(key) is None or _digest(store, key) != found


def _commits(
    store: Store, manifest: Manifest, sizes: dict[str, int], faults: list[Fault]
) -> Iterator[tuple[int, CommitRecord]]:
    """Sound commit records by shard; a shard without one is a fault too."""
    keys = {commit_key(shard): shard for shard in range(manifest.shard_count)}
    there = [key for key in keys if key in sizes]
    faults += [
        Fault("unbuilt", key, shard, "not built yet, or its commit record is lost")
        for key, shard in keys.items()
        if key not in sizes
    ]
    for key, data in zip(there, store.read_all(there), strict=True):
        shard = keys[key]
        try:
            record = parse_commit(data, key, manifest, store.where(key))
        except CacheCorruptError as error:
            faults.append(Fault("commit", key, shard, str(error)))
            continue
        if covers(record, manifest):
            yield shard, record
        else:
            faults.append(Fault("commit", key, shard, f"covers {record.rows} rows from {record.first_row}"))


def _expected(manifest: Manifest, records: dict[int, CommitRecord]) -> dict[str, tuple[int | None, int | None, str]]:
    """Every object that must be there: its shard, its bytes where they are recorded, its digest."""
    listed: dict[str, tuple[int | None, int | None, str]] = {k: (None, None, d) for k, d in manifest.files.items()}
    for shard, record in records.items():
        listed |= {key: (shard, stored.bytes, stored.xxh3_128) for key, stored in record.objects.items()}
    return listed


def _unlisted(manifest: Manifest, sizes: dict[str, int], expected: Iterable[str]) -> Iterator[Fault]:
    """Objects that nothing names; those of shards without a sound record are at worst work that was cut short."""
    known = {GROUP_KEY, *expected}
    for shard in range(manifest.shard_count):
        known |= {commit_key(shard), *(spec.data_key(shard) for spec in array_specs(manifest))}
    for key in sorted(set(sizes) - known):
        if not is_hint_key(key):
            yield Fault("stray", key, None, "nothing in the cache names it")


def _hint_faults(store: Store, manifest: Manifest, keys: list[str]) -> Iterator[Fault]:
    for key in unsound_hints(store, manifest, keys):
        yield Fault("hint", key, None, "not as it was written, or of another corpus; builds pass over it")


def _object_fault(
    store: Store, key: str, shard: int | None, size: int | None, digest: str, sizes: dict[str, int]
) -> Fault | None:
    if key not in sizes:
        return Fault("missing", key, shard, "missing")
    if size is not None and sizes[key] != size:
        return Fault("size", key, shard, f"{sizes[key]} bytes instead of {size}")
    try:
        found = _digest(store, key)
    except OSError as error:
        return Fault("digest", key, shard, f"cannot be read ({error.strerror})")
    return None if found == digest else Fault("digest", key, shard, "its bytes are not those that were written")


def _digest(store: Store, key: str) -> str:
    running = xxhash.xxh3_128()
    for block in store.blocks(key):
        running.update(block)
    return running.hexdigest()
