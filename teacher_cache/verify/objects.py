"""Whether a cache is what was written: every object present, of the recorded size and digest, and no other objects.

`verify` checks bytes, `verify_content` whether their values are possible, `verify_teacher` whether the teacher agrees.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

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
    """Something that is not as it was written: an object, its shard if it belongs to one, and what is wrong."""

    kind: Kind
    key: str
    shard: int | None
    problem: str


@dataclass
class Findings:
    """What a verification looked at and what it found."""

    path: Path | str
    faults: list[Fault] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    shards_done: int = 0
    shards_planned: int = 0
    seconds: float = 0.0
    measures: dict[str, Mapping[int, float] | Mapping[str, float]] = field(default_factory=dict)
    """Of deeper checks: how well targets line up with tokens, and how far cached values are from the teacher's."""

    @property
    def is_sound(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "sound": self.is_sound,
            **{k: v for k, v in asdict(self).items() if k != "path"},
        }


class _Expected(NamedTuple):
    """What is recorded of an object: the shard it belongs to and its bytes, None for files of the whole cache."""

    shard: int | None
    bytes: int | None
    digest: str


def verify(store: Store) -> Findings:
    """Look at every object of a cache: whether it is there, its size and its digest.

    Raises `CacheFormatError` when there is no cache to look at, or one of another format version.
    """
    started = time.monotonic()
    findings = Findings(store.path)
    sizes = store.sizes()
    manifest, findings.faults = _read_manifest(store, sizes)
    if manifest is not None:
        _verify_objects(store, manifest, sizes, findings)
    findings.seconds = time.monotonic() - started
    return findings


def _verify_objects(store: Store, manifest: Manifest, sizes: dict[str, int], findings: Findings) -> None:
    """Add the faults of all objects but the manifest to `findings`, and how many objects and bytes there are."""
    records, record_faults = _read_commits(store, manifest, sizes)
    expected = _expected_objects(manifest, records)
    hints = [key for key in sizes if is_hint_key(key)]
    object_faults = (_object_fault(store, key, wanted, sizes.get(key)) for key, wanted in expected.items())
    findings.faults += [
        *record_faults,
        *_unlisted(manifest, sizes, expected),
        *_hint_faults(store, manifest, hints),
        *(fault for fault in object_faults if fault is not None),
    ]
    findings.shards_planned, findings.shards_done = manifest.shard_count, len(records)
    findings.objects = len(expected) + len(records) + len(hints) + 1
    findings.bytes = sum(sizes.get(key, 0) for key in [*expected, *hints])


def _read_manifest(store: Store, sizes: dict[str, int]) -> tuple[Manifest | None, list[Fault]]:
    """The manifest, or None where it is missing or damaged, and what is wrong with it and the arrays' metadata."""
    try:
        manifest = read_manifest(store)
    except CacheCorruptError as error:
        return None, [Fault("metadata", GROUP_KEY, None, str(error))]
    if manifest is not None:
        return manifest, list(_metadata_faults(store, manifest))
    if not any(key.startswith(f"{COMMITS_FOLDER}/") for key in sizes):
        raise CacheFormatError(f"{store.path}: no teacher cache here; give the folder that build wrote")
    return None, [Fault("missing", GROUP_KEY, None, "the manifest is missing")]


def _metadata_faults(store: Store, manifest: Manifest) -> Iterator[Fault]:
    """Array metadata that has its recorded digest and still contradicts the manifest: no accident writes that."""
    try:
        check_metadata(store, manifest)
    except CacheCorruptError as error:
        if all(not _is_damaged(store, key, found) for key, found in manifest.files.items() if is_metadata_key(key)):
            yield Fault("metadata", GROUP_KEY, None, str(error))


def _is_damaged(store: Store, key: str, digest: str) -> bool:
    return store.size(key) is None or _digest(store, key) != digest


def _read_commits(
    store: Store, manifest: Manifest, sizes: dict[str, int]
) -> tuple[dict[int, CommitRecord], list[Fault]]:
    """Sound commit records by shard, and a fault for every shard that has none."""
    keys = {shard: commit_key(shard) for shard in range(manifest.shard_count)}
    there = {shard: key for shard, key in keys.items() if key in sizes}
    records: dict[int, CommitRecord] = {}
    faults = [
        Fault("unbuilt", key, shard, "not built yet, or its commit record is lost")
        for shard, key in keys.items()
        if shard not in there
    ]
    for (shard, key), data in zip(there.items(), store.read_all([*there.values()]), strict=True):
        try:
            record = parse_commit(data, key, manifest, store.where(key))
        except CacheCorruptError as error:
            faults.append(Fault("commit", key, shard, str(error)))
            continue
        if covers(record, manifest):
            records[shard] = record
        else:
            faults.append(Fault("commit", key, shard, f"covers {record.rows} rows from {record.first_row}"))
    return records, faults


def _expected_objects(manifest: Manifest, records: dict[int, CommitRecord]) -> dict[str, _Expected]:
    """Every object that the manifest or a commit record names, by its key."""
    expected = {key: _Expected(None, None, digest) for key, digest in manifest.files.items()}
    for shard, record in records.items():
        expected |= {key: _Expected(shard, stored.bytes, stored.xxh3_128) for key, stored in record.objects.items()}
    return expected


def _unlisted(manifest: Manifest, sizes: dict[str, int], expected: Iterable[str]) -> Iterator[Fault]:
    """Objects that no record names. An object of a shard without a sound record is not one: its build may go on."""
    known = {GROUP_KEY, *expected}
    for shard in range(manifest.shard_count):
        known |= {commit_key(shard), *(spec.data_key(shard) for spec in array_specs(manifest))}
    for key in sorted(set(sizes) - known):
        if not is_hint_key(key):
            yield Fault("stray", key, None, "nothing in the cache names it")


def _hint_faults(store: Store, manifest: Manifest, keys: list[str]) -> Iterator[Fault]:
    for key in unsound_hints(store, manifest, keys):
        yield Fault("hint", key, None, "not as it was written, or of another corpus; builds ignore it")


def _object_fault(store: Store, key: str, expected: _Expected, size: int | None) -> Fault | None:
    """What is wrong with an object of `size` bytes; None of size is missing."""
    if size is None:
        return Fault("missing", key, expected.shard, "missing")
    if expected.bytes is not None and size != expected.bytes:
        return Fault("size", key, expected.shard, f"{size} bytes instead of {expected.bytes}")
    try:
        found = _digest(store, key)
    except OSError as error:
        return Fault("digest", key, expected.shard, f"cannot be read ({error.strerror})")
    if found == expected.digest:
        return None
    return Fault("digest", key, expected.shard, "its bytes are not those that were written")


def _digest(store: Store, key: str) -> str:
    running = xxhash.xxh3_128()
    for block in store.blocks(key):
        running.update(block)
    return running.hexdigest()
