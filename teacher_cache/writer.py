"""A cache being written: its metadata, then shard by shard, each counted only from its commit record on."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from cli_common.differences import differences
from cli_common.files import remove_leftovers
from teacher_cache.codec import create_group_metadata, encode_shard
from teacher_cache.format import (
    COMMITS_FOLDER,
    CacheError,
    CommitRecord,
    Manifest,
    StoredObject,
    commit_key,
    parse_commit,
)
from teacher_cache.reader import read_manifest
from teacher_cache.store import LocalStore, digest


class CacheWriter:
    """Creates a cache or continues one with the same manifest, and publishes finished shards."""

    def __init__(self, store: LocalStore, manifest: Manifest, teacher_files: Mapping[str, bytes]) -> None:
        """`teacher_files` are the objects under `teacher/` that `manifest.files` names, by key.

        Raises `CacheError` when the folder holds something else, or a cache made with other settings.
        """
        self.manifest = manifest
        self._store = store
        self._metadata = create_group_metadata(manifest)
        self._refuse_other_content()
        remove_leftovers(store.root)
        self._publish_missing({**teacher_files, **self._metadata})
        self._drop_commits_of_other_extent()

    def pending_shards(self) -> list[int]:
        """Shards without a commit record, in order."""
        return [s for s in range(self.manifest.shard_count) if not self._store.exists(commit_key(s))]

    def write_shard(
        self,
        shard: int,
        arrays: Mapping[str, NDArray[Any]],
        statistics: Mapping[str, float],
        environment: Mapping[str, str],
    ) -> CommitRecord:
        """Encode, publish and commit one shard; `arrays` as `format.array_specs` names them, rows on axis 0."""
        objects = encode_shard(self.manifest, self._metadata, shard, arrays)
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
        )
        self._store.publish(commit_key(shard), record.model_dump_json(indent=1).encode())
        return record

    def _refuse_other_content(self) -> None:
        root = self._store.root
        if root.exists() and not root.is_dir():
            raise CacheError(f"{root}: a file, not a folder; choose another --out")
        existing = read_manifest(self._store)
        if existing is None:
            if root.is_dir() and any(
                p.name not in {"teacher", "logits", "exact", "hidden"} | _ARRAYS for p in root.iterdir()
            ):
                raise CacheError(f"{root}: a folder with other content; choose another --out or an empty folder")
            return
        changed = manifest_differences(existing, self.manifest)
        if changed:
            raise CacheError(
                f"{root}: holds a cache made otherwise: {changed[0]}; choose another --out or the same settings"
            )

    def _publish_missing(self, objects: Mapping[str, bytes]) -> None:
        """Publish what is absent or differs, in the order given: the group's document, last, makes it a cache."""
        for key, data in objects.items():
            if not self._store.exists(key) or self._store.read(key) != data:
                self._store.publish(key, data)

    def _drop_commits_of_other_extent(self) -> None:
        """A cache that grew or shrank keeps its whole shards; a last shard of other length is built anew."""
        for key in self._store.keys(COMMITS_FOLDER):
            record = parse_commit(self._store.read(key), where=str(self._store.root / key))
            if record.shard >= self.manifest.shard_count or record.rows != len(self.manifest.shard_rows(record.shard)):
                self._store.remove(key)


_ARRAYS = {"tokens", "document_start", "loss_mask"}


def manifest_differences(existing: Manifest, wanted: Manifest) -> list[str]:
    """What differs between two manifests, as `key: cache has X, settings give Y`.

    The number of rows may differ: a row does not depend on how many follow it.
    """
    return [
        f"{key}: the cache has {old!r}, these settings give {new!r}"
        for key, old, new in differences(existing.to_json(), wanted.to_json())
        if key != "rows.count"
    ]
