"""Damaged shards put aside and built again; sound ones are not touched."""

from dataclasses import dataclass
from pathlib import Path

from teacher_cache.build.job import build
from teacher_cache.build.request import settings_differences
from teacher_cache.format.arrays import array_specs
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheCorruptError, CacheError
from teacher_cache.settings import BuildSettings
from teacher_cache.store.base import Store
from teacher_cache.store.metadata import read_manifest
from teacher_cache.store.open import open_existing
from teacher_cache.verify.content import verify_bytes_and_content
from teacher_cache.verify.objects import Findings, verify

QUARANTINE_FOLDER = ".quarantine"


@dataclass(frozen=True)
class RepairReport:
    """What a repair has done: keys put aside, and where; shards built again; what a last look has found."""

    quarantined: list[str]
    folder: str | None
    shards_built: int
    findings: Findings


def repair(path: str | Path, settings: BuildSettings, *, deep: bool = False) -> RepairReport:
    """Verify a cache, put what is damaged into quarantine, and build that anew from the settings that made it.

    What is built is equal, to the byte on the same machine, to what a sound build gives. Raises `CacheError` when the
    settings are not those of the cache.
    """
    store = open_existing(path)
    settings = _settings_of(store, settings)
    folder, moved, built = _new_folder(store), [], 0
    # With the manifest itself lost, shards can be judged only when it has been written again.
    for _ in range(3):
        findings = _look(store, deep)
        if findings.is_sound:
            break
        moved += _quarantine(store, findings, folder)
        built += build(settings, path).shards_built
    else:
        findings = _look(store, deep)
    return RepairReport(moved, store.where(folder) if moved else None, built, findings)


def _look(store: Store, deep: bool) -> Findings:
    return verify_bytes_and_content(store) if deep else verify(store)


def _settings_of(store: Store, settings: BuildSettings) -> BuildSettings:
    """The settings with the cache's number of rows; refused where they make another cache."""
    try:
        manifest = read_manifest(store)
    except CacheCorruptError:
        return settings
    if manifest is None:
        return settings
    differences = settings_differences(manifest, settings)
    if differences:
        raise CacheError(f"{store.path}: was made otherwise: {differences[0]}; give the settings it was built with")
    return settings.model_copy(update={"rows": settings.rows.model_copy(update={"count": manifest.rows.count})})


def _quarantine(store: Store, findings: Findings, folder: str) -> list[str]:
    """Put every faulty object aside, and with one object of a shard the whole shard; the keys that moved."""
    keys = {fault.key for fault in findings.faults if fault.kind != "content"}
    shards = {fault.shard for fault in findings.faults if fault.shard is not None}
    manifest = None if any(fault.key == "zarr.json" for fault in findings.faults) else read_manifest(store)
    for shard in shards:
        # The record goes first: without it the shard does not count, wherever this stops.
        _move(store, commit_key(shard), folder)
        keys |= {commit_key(shard), *(spec.data_key(shard) for spec in array_specs(manifest))} if manifest else set()
    there = [key for key in sorted(keys) if _move(store, key, folder)]
    return there + [commit_key(shard) for shard in shards]


def _move(store: Store, key: str, folder: str) -> bool:
    if store.size(key) is None:
        return False
    store.move(key, f"{folder}/{key}")
    return True


def _new_folder(store: Store) -> str:
    """A quarantine of its own for each repair, numbered: clocks go back."""
    taken = store.names(QUARANTINE_FOLDER)
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
    return f"{QUARANTINE_FOLDER}/{number:04d}"
