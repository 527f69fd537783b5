"""A cache being written: its metadata, then shard by shard, each counted only from its commit record on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from delta_common.differences import differences
from teacher_cache.corpus.bookmarks import Positions
from teacher_cache.format.arrays import array_specs
from teacher_cache.format.codec import describe_arrays, describe_group, encode_shard
from teacher_cache.format.commits import CommitRecord, StoredObject, commit_key, covers, parse_commit
from teacher_cache.format.errors import CacheError
from teacher_cache.format.keys import COMMITS_FOLDER, CORPUS_FOLDER, GROUP_KEY, is_metadata_key
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.sealed import digest, seal
from teacher_cache.store.base import Store, read_if_there
from teacher_cache.store.metadata import is_intact, read_manifest

METADATA_PATIENCE = 120.0
"""Seconds to wait while another builder writes the metadata."""


class CacheWriter:
    """Creates a cache or continues one with the same manifest, and publishes finished shards."""

    def __init__(self, store: Store, manifest: Manifest, teacher_files: Mapping[str, bytes]) -> None:
        """`teacher_files` are the objects under `teacher/`, by key; the manifest comes to list them.

        Raises `CacheError` when the folder holds something else, or a cache made with other settings.
        """
        self._store = store
        self._documents = describe_arrays(manifest)
        objects = {**teacher_files, **self._documents}
        self.manifest = manifest.model_copy(update={"files": {key: digest(data) for key, data in objects.items()}})
        self._refuse_other_content()
        with store.lock("metadata", patience=METADATA_PATIENCE) as held:
            if not held:
                raise CacheError(f"{store.where('')}: another builder holds its metadata; run the same command again")
            self._publish_metadata(objects)
            self._drop_commits_of_other_extent()

    def pending_shards(self) -> list[int]:
        """Shards without a commit record, in order."""
        done = self._store.sizes(COMMITS_FOLDER)
        return [s for s in range(self.manifest.shard_count) if commit_key(s) not in done]

    def abandoned_shards(self) -> list[int]:
        """Pending shards that nobody is making: their builders died. In an object store this may take a minute."""
        return [shard for shard in self.pending_shards() if self._store.is_abandoned(_lock_name(shard))]

    def positions(self) -> Positions:
        """Where in the corpus shards begin, as far as builders have got."""
        return Positions(self._store, self.manifest)

    @property
    def is_finished(self) -> bool:
        return not self.pending_shards()

    @contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Hold a shard while it is made; False where another process makes it, or has meanwhile made it."""
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
        """Encode, publish and commit one shard; `arrays` as `format.array_specs` names them, rows on axis 0."""
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
        )
        if not self._store.create(commit_key(shard), seal(record)):
            self._require_same(record)
        return record

    def _require_same(self, record: CommitRecord) -> None:
        """Another builder that took this shard over has committed it: its objects must be those written here."""
        key = commit_key(record.shard)
        found = parse_commit(self._store.read(key), key, self.manifest, self._store.where(key))
        if found.objects != record.objects:
            raise CacheError(
                f"{self._store.where(key)}: another builder has made this shard with other bytes; "
                "run teacher-cache repair when all builders have ended"
            )

    def _refuse_other_content(self) -> None:
        path, names = self._store.path, self._store.names()
        existing = read_manifest(self._store)
        if existing is None:
            ours = {key.partition("/")[0] for key in self.manifest.files} | {COMMITS_FOLDER, CORPUS_FOLDER}
            if names - ours:
                raise CacheError(f"{path}: a folder with other content; choose another --out or an empty folder")
            return
        changed = manifest_differences(existing, self.manifest)
        if changed:
            raise CacheError(
                f"{path}: holds a cache made otherwise: {changed[0]}; choose another --out or the same settings"
            )
        if existing.rows.count == self.manifest.rows.count and is_intact(self._store, existing):
            self.manifest = existing  # maybe by another version of Zarr, which says the same in other bytes

    def _publish_metadata(self, objects: Mapping[str, bytes]) -> None:
        """Publish what is absent or differs: the group's document, last, makes it a cache."""
        wanted = {key: data for key, data in objects.items() if digest(data) == self.manifest.files[key]}
        for key, data in {**wanted, GROUP_KEY: describe_group(self.manifest)}.items():
            self._store.remove_leftovers(key)
            if read_if_there(self._store, key) != data:
                self._store.publish(key, data)

    def _drop_commits_of_other_extent(self) -> None:
        """A cache that grew or shrank keeps its whole shards; a last shard of other length is built anew."""
        keys = list(self._store.sizes(COMMITS_FOLDER))
        for key, data in zip(keys, self._store.read_all(keys), strict=True):
            if not covers(parse_commit(data, key, self.manifest, self._store.where(key)), self.manifest):
                self._store.remove(key)


def _lock_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def manifest_differences(existing: Manifest, wanted: Manifest) -> list[str]:
    """What differs between two manifests, as `key: cache has X, settings give Y`.

    The number of rows may differ: a row does not depend on how many follow it.
    """
    return [
        f"{key}: the cache has {old!r}, these settings give {new!r}"
        for key, old, new in differences(existing.to_json(), wanted.to_json())
        if key != "rows.count" and not (key.startswith("files.") and is_metadata_key(key))
    ]
