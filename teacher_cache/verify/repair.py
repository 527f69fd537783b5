"""Damaged shards are put aside and built again; sound ones are not touched."""

from dataclasses import dataclass
from pathlib import Path

from teacher_cache.build.job import build_in_group
from teacher_cache.build.request import settings_differences
from teacher_cache.format.arrays import array_specs
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheCorruptError, CacheError
from teacher_cache.settings import BuildSettings
from teacher_cache.store.base import Store
from teacher_cache.store.metadata import read_manifest
from teacher_cache.store.open import open_existing
from teacher_cache.teacher.load import group_of, serve
from teacher_cache.teacher.parallel.group import LeftOut, TeacherGroup
from teacher_cache.verify.content import verify_bytes_and_content
from teacher_cache.verify.objects import Findings, verify

QUARANTINE_FOLDER = ".quarantine"


@dataclass(frozen=True)
class RepairReport:
    """What a repair did: the keys it put aside and where, the shards it built again, and what a last check found."""

    quarantined: list[str]
    folder: str | None
    shards_built: int
    findings: Findings


def repair(path: str | Path, settings: BuildSettings, *, deep: bool = False) -> RepairReport:
    """Verify a cache, put what is damaged into quarantine, and build it again from the settings that made the cache.

    On the same machine the result is byte-identical to a sound build. Raises `CacheError` when the settings are not
    those of the cache. Where several processes hold the teacher, one of them repairs, and the others raise `LeftOut`.
    """
    with group_of(settings.teacher) as group:
        if not group.leads:
            serve(group)
            raise LeftOut
        return _repair(path, settings, group, deep=deep)


def _repair(path: str | Path, settings: BuildSettings, group: TeacherGroup, *, deep: bool) -> RepairReport:
    store = open_existing(path)
    settings = _settings_of(store, settings)
    folder, moved, built = _new_folder(store), [], 0
    # Where the manifest itself is lost, shards can be checked only after it is written again.
    for _ in range(3):
        findings = _verify(store, deep)
        if findings.is_sound:
            break
        moved += _quarantine(store, findings, folder)
        built += build_in_group(group, settings, path).shards_built
    else:
        findings = _verify(store, deep)
    return RepairReport(moved, store.where(folder) if moved else None, built, findings)


def _verify(store: Store, deep: bool) -> Findings:
    return verify_bytes_and_content(store) if deep else verify(store)


def _settings_of(store: Store, settings: BuildSettings) -> BuildSettings:
    """The settings with the cache's number of rows. Raises `CacheError` where they would make another cache."""
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
    """Put faulty objects aside, each with the whole shard it belongs to; return the keys that moved."""
    keys = {fault.key for fault in findings.faults if fault.kind != "content"}
    shards = {fault.shard for fault in findings.faults if fault.shard is not None}
    manifest = None if any(fault.key == "zarr.json" for fault in findings.faults) else read_manifest(store)
    for shard in shards:
        # The record goes first: without it the shard does not count, wherever a crash stops this.
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
    """A quarantine folder for this repair, numbered rather than dated because clocks can go back."""
    taken = store.names(QUARANTINE_FOLDER)
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
    return f"{QUARANTINE_FOLDER}/{number:04d}"
