"""Reading the manifest, and checking the arrays' metadata against it before Zarr trusts them.

A cache may come from an untrusted source.
"""

from typing import Any

from teacher_cache.format.arrays import ArraySpec, array_specs
from teacher_cache.format.errors import REPAIR, CacheCorruptError
from teacher_cache.format.keys import GROUP_KEY, metadata_key
from teacher_cache.format.manifest import Manifest, parse_manifest
from teacher_cache.format.sealed import digest, load_json
from teacher_cache.store.base import Store, read_if_there

GROUP_DOCUMENT = {"zarr_format": 3, "node_type": "group"}


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of the cache in a store, or None where there is no Zarr group."""
    data = read_if_there(store, GROUP_KEY)
    if data is None:
        return None
    where = store.where("")
    try:
        document = load_json(data)
    except ValueError as error:
        raise CacheCorruptError(f"{where}: its zarr.json is not JSON; {REPAIR}") from error
    document = document if isinstance(document, dict) else {}
    attributes = document.pop("attributes", None)
    manifest = parse_manifest(attributes if isinstance(attributes, dict) else {}, where)
    if document != GROUP_DOCUMENT:
        raise CacheCorruptError(f"{where}: its zarr.json describes something other than a group; {REPAIR}")
    return manifest


def check_metadata(store: Store, manifest: Manifest) -> None:
    """Raise `CacheCorruptError` unless every array's metadata has its listed digest and agrees with the manifest."""
    specs = {metadata_key(spec.name): spec for spec in array_specs(manifest)}
    groups = {metadata_key(spec.name.rpartition("/")[0]) for spec in specs.values() if "/" in spec.name}
    for key in [*specs, *sorted(groups)]:
        data = read_listed(store, manifest, key)
        problem = _group_problem(data) if key in groups else array_problem(data, specs[key], manifest)
        if problem:
            raise CacheCorruptError(f"{store.where(key)}: {problem}; {REPAIR}")


def is_intact(store: Store, manifest: Manifest) -> bool:
    """Whether every object that the manifest lists is there with the listed digest."""
    found = ((read_if_there(store, key), written) for key, written in manifest.files.items())
    return all(data is not None and digest(data) == written for data, written in found)


def read_listed(store: Store, manifest: Manifest, key: str) -> bytes:
    """An object that the manifest lists; raises `CacheCorruptError` where it is missing or its digest differs."""
    if key not in manifest.files:
        raise CacheCorruptError(f"{store.where(key)}: the manifest does not list it; {REPAIR}")
    data = read_if_there(store, key)
    if data is None:
        raise CacheCorruptError(f"{store.where(key)}: missing; {REPAIR}")
    if digest(data) != manifest.files[key]:
        raise CacheCorruptError(f"{store.where(key)}: its bytes are not those that were written; {REPAIR}")
    return data


def array_problem(data: bytes, spec: ArraySpec, manifest: Manifest) -> str | None:
    """What is wrong with an array's metadata document, None if nothing is."""
    document, rows = _parse(data), manifest.rows
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows.count, *spec.row_shape],
        "data_type": spec.dtype,
        "chunk_grid": _regular([rows.rows_per_shard, *spec.row_shape]),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    }
    for key, value in wanted.items():
        if document.get(key) != value:
            return f"{key} is {document.get(key)!r}, the manifest says {value!r}"
    try:
        return _codec_problem(document["codecs"], [rows.rows_per_chunk, *spec.row_shape], spec.codecs)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return "codecs are not those of docs/format.md"


def _codec_problem(codecs: Any, chunk_shape: list[int], wanted: tuple[str, ...]) -> str | None:
    (sharding,) = [codec for codec in codecs if codec["name"] == "sharding_indexed"]
    inner = sharding["configuration"]
    found = (
        len(codecs),
        inner["chunk_shape"],
        tuple(codec["name"] for codec in inner["codecs"]),
        tuple(codec["name"] for codec in inner["index_codecs"]),
        inner["index_location"],
    )
    right = (1, chunk_shape, wanted, ("bytes", "crc32c"), "end")
    return None if found == right else f"codecs are {found!r}, docs/format.md says {right!r}"


def _group_problem(data: bytes) -> str | None:
    document = _parse(data)
    return None if {key: document.get(key) for key in GROUP_DOCUMENT} == GROUP_DOCUMENT else "is not a Zarr group"


def _parse(data: bytes) -> dict[str, object]:
    try:
        document = load_json(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _regular(shape: list[int]) -> dict[str, object]:
    return {"name": "regular", "configuration": {"chunk_shape": shape}}
