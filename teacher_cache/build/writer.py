"""Writes a cache: its metadata first, then its shards. A shard counts once its commit record is there."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numcodecs
import numpy as np
import torch
import transformers
import zarr
from numpy.typing import NDArray

from delta_common.differences import differences
from teacher_cache.corpus.bookmarks import Bookmarks
from teacher_cache.format.arrays import ROLES, array_specs
from teacher_cache.format.codec import describe_arrays, describe_group, encode_shard
from teacher_cache.format.commits import CommitRecord, StoredObject, claimed_identity, commit_key, covers, parse_commit
from teacher_cache.format.errors import CacheError
from teacher_cache.format.keys import COMMITS_FOLDER, CORPUS_FOLDER, GROUP_KEY, is_metadata_key
from teacher_cache.format.manifest import KNOWN_VERSIONS, Manifest
from teacher_cache.format.sealed import digest, seal
from teacher_cache.store.base import Store, read_if_there
from teacher_cache.store.metadata import is_intact, read_manifest

METADATA_PATIENCE = 120.0
"""Seconds to wait for another builder that is writing the metadata."""

LONGEST_LIST = 16
"""Items of a list that a message shows."""


class CacheWriter:
    """Writes the shards of a cache whose metadata is there; made by `CacheWriter.open`."""

    def __init__(self, store: Store, manifest: Manifest, array_documents: Mapping[str, bytes]) -> None:
        self._store = store
        self._documents = array_documents
        self.manifest = manifest

    @classmethod
    def open(cls, store: Store, manifest: Manifest, teacher_files: Mapping[str, bytes]) -> Self:
        """Create a cache, or continue one with the same manifest: publish what its metadata lacks, under a lock.

        `teacher_files` are the objects under `teacher/`, by key; the writer's manifest lists them. If the cache grows
        or shrinks, whole shards are kept. It stays in the format version it was begun in. Raises `CacheError` if the
        folder holds something else, or a cache made with other settings.
        """
        manifest = _in_the_version_begun(store, manifest)
        documents = describe_arrays(manifest)
        objects = {**teacher_files, **documents}
        files = {key: digest(data) for key, data in objects.items()}
        manifest = _continued(store, manifest.model_copy(update={"files": files}))
        with store.lock("metadata", patience=METADATA_PATIENCE) as held:
            if not held:
                raise CacheError(f"{store.where('')}: another builder holds its metadata; run the same command again")
            _publish_metadata(store, manifest, objects)
            _drop_commits_of_other_extent(store, manifest)
        return cls(store, manifest, documents)

    def pending_shards(self) -> list[int]:
        """Shards without a commit record, in order."""
        done = self._store.sizes(COMMITS_FOLDER)
        return [s for s in range(self.manifest.shard_count) if commit_key(s) not in done]

    def abandoned_shards(self) -> list[int]:
        """Pending shards that no builder holds. An object store notices about a minute later that a builder died."""
        return [shard for shard in self.pending_shards() if self._store.is_abandoned(_lock_name(shard))]

    def bookmarks(self) -> Bookmarks:
        """Where in the corpus shards begin, as far as builders have come."""
        return Bookmarks(self._store, self.manifest)

    @property
    def is_finished(self) -> bool:
        return not self.pending_shards()

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while it is built; yields False if another process is building it or has just finished it."""
        with self._store.lock(_lock_name(shard)) as held:
            mine = held and self._store.size(commit_key(shard)) is None
            if mine:
                for key in [*(spec.data_key(shard) for spec in array_specs(self.manifest)), commit_key(shard)]:
                    self._store.remove_leftovers(key)
            yield mine

    def write_shard(
        self,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        statistics: Mapping[str, float],
        environment: Mapping[str, str],
    ) -> CommitRecord:
        """Encode, publish and commit a shard; `arrays` by their names in docs/format.md, rows on axis 0.

        Raises `CacheError` if another builder has committed the shard with other bytes.
        """
        objects = encode_shard(self.manifest, self._documents, shard, arrays)
        for key, data in objects.items():
            self._store.publish(key, data)
        rows = self.manifest.shard_rows(shard)
        record = CommitRecord(
            shard=shard,
            first_row=rows.start,
            rows=len(rows),
            positions=int(arrays["loss_mask"].sum()),
            objects={key: StoredObject(bytes=len(data), xxh3_128=digest(data)) for key, data in objects.items()},
            statistics=dict(statistics),
            environment=dict(environment),
            identity=self.manifest.identity,
            roles=_role_counts(arrays["role"]) if "role" in arrays else None,
        )
        if not self._store.create(commit_key(shard), seal(record)):
            self._require_same(record)
        return record

    def _require_same(self, record: CommitRecord) -> None:
        """Raise `CacheError` unless the other builder's commit record lists the same objects as this one."""
        key = commit_key(record.shard)
        found = parse_commit(self._store.read(key), key, self.manifest, self._store.where(key))
        if found.objects != record.objects:
            raise CacheError(
                f"{self._store.where(key)}: another builder has made this shard with other bytes; "
                "run teacher-cache repair when all builders have ended"
            )


def _role_counts(roles: NDArray[np.uint8]) -> dict[str, int]:
    """Positions by the role of their label."""
    counts = np.bincount(roles.reshape(-1), minlength=len(ROLES))
    return {role: int(count) for role, count in zip(ROLES, counts, strict=True)}


def _in_the_version_begun(store: Store, manifest: Manifest) -> Manifest:
    """The manifest in the format version of the cache that is there, if one is.

    Where its manifest is lost, a commit record tells the version by its identity, so that a repair keeps the shards.
    """
    existing = read_manifest(store)
    if existing is not None:
        return manifest.in_version(existing.format_version)
    records = (store.read(key) for key in store.sizes(COMMITS_FOLDER))
    for identity in filter(None, map(claimed_identity, records)):
        for version in KNOWN_VERSIONS:
            if manifest.in_version(version).identity == identity:
                return manifest.in_version(version)
    return manifest


def _continued(store: Store, manifest: Manifest) -> Manifest:
    """The manifest to continue with: the existing cache's if it is intact and has as many rows, else the given one.

    Raises `CacheError` if the folder holds something else, or a cache made with other settings.
    """
    existing = read_manifest(store)
    if existing is None:
        ours = {key.partition("/")[0] for key in manifest.files} | {COMMITS_FOLDER, CORPUS_FOLDER}
        if store.names() - ours:
            raise CacheError(f"{store.path}: a folder with other content; choose another --out or an empty folder")
        return manifest
    changed = manifest_differences(existing, manifest)
    if changed:
        raise CacheError(
            f"{store.path}: holds a cache made otherwise: {changed[0]}; choose another --out or the same settings"
        )
    # Another version of Zarr may have written the existing metadata, with the same meaning in other bytes.
    same = existing.rows.count == manifest.rows.count and is_intact(store, existing)
    return existing if same else manifest


def _publish_metadata(store: Store, manifest: Manifest, objects: Mapping[str, bytes]) -> None:
    """Publish the objects that are absent or differ; the group's document comes last and makes the folder a cache."""
    wanted = {key: data for key, data in objects.items() if digest(data) == manifest.files[key]}
    for key, data in {**wanted, GROUP_KEY: describe_group(manifest)}.items():
        store.remove_leftovers(key)
        if read_if_there(store, key) != data:
            store.publish(key, data)


def _drop_commits_of_other_extent(store: Store, manifest: Manifest) -> None:
    """Remove the commit record of a last shard whose length has changed, so that it is built anew."""
    keys = list(store.sizes(COMMITS_FOLDER))
    for key, data in zip(keys, store.read_all(keys), strict=True):
        if not covers(parse_commit(data, key, manifest, store.where(key)), manifest):
            store.remove(key)


def _lock_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def manifest_differences(existing: Manifest, wanted: Manifest) -> list[str]:
    """How two manifests differ, each difference as `key: the cache has X, these settings give Y`.

    The number of rows may differ: a row does not depend on how many follow it.
    """
    return [
        f"{key}: the cache has {_in_words(old)}, these settings give {_in_words(new)}"
        for key, old, new in differences(existing.to_json(), wanted.to_json())
        if key != "rows.count" and not (key.startswith("files.") and is_metadata_key(key))
    ]


def _in_words(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) and len(value) > LONGEST_LIST else repr(value)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a shard was computed with: where they differ, rounding may differ."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "zarr": zarr.__version__,
        "numcodecs": numcodecs.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cores": str(os.cpu_count()),
    }
