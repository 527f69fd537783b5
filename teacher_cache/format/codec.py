"""Rows to the bytes of a shard's objects and back: one Zarr codec chain per array, chosen by measurement.

pcodec compresses every numeric array better than zstd with shuffle (docs/benchmarks.md). The crc32c at the end of
each chunk lets any Zarr reader notice a flipped bit.
"""

import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import PCodec
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from teacher_cache.format.arrays import PAGE_NUMBERS, ArraySpec, array_specs
from teacher_cache.format.keys import GROUP_KEY
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.packing import Arrays, packed


class _Quiet:
    """Filters a warning while at least one thread is inside; `catch_warnings` in two threads would undo each other."""

    def __init__(self) -> None:
        self._lock, self._threads, self._filters = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3", ZarrUserWarning)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._filters.close()


_QUIET = _Quiet()


def quiet_zarr() -> AbstractContextManager[None]:
    """Silence Zarr's warning that numcodecs' codecs are not in the v3 specification; docs/format.md says so once."""
    return _QUIET


def encoding_beside_other_work() -> AbstractContextManager[object]:
    """Let Zarr encode on three quarters of this process's cores, so that the thread that feeds a GPU has one.

    With all cores, Zarr's default, that thread's small calls took 2.5 times as long. If the user has set Zarr's number
    of threads, it is kept.
    """
    if zarr.config.get("threading.max_workers", None) is not None:
        return nullcontext()
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    set_for_now: AbstractContextManager[object] = zarr.config.set({"threading.max_workers": max(1, 3 * cores // 4)})
    return set_for_now


def describe_arrays(manifest: Manifest) -> dict[str, bytes]:
    """The `zarr.json` documents of the arrays and of the groups they lie in, by key, without the cache's own."""
    objects: dict[str, Buffer] = {}
    with quiet_zarr():
        group = zarr.create_group(MemoryStore(objects))
        for spec in array_specs(manifest):
            _create_array(group, spec, manifest)
    return {key: buffer.to_bytes() for key, buffer in objects.items() if key != GROUP_KEY}


def describe_group(manifest: Manifest) -> bytes:
    """The cache's own `zarr.json`, whose attributes hold the manifest."""
    objects: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(objects), attributes=manifest.attributes())
    return objects[GROUP_KEY].to_bytes()


def _create_array(group: zarr.Group, spec: ArraySpec, manifest: Manifest) -> None:
    rows = manifest.rows
    group.create_array(
        spec.name,
        shape=(rows.count, *spec.row_shape),
        chunks=(rows.rows_per_chunk, *spec.row_shape),
        shards=(rows.rows_per_shard, *spec.row_shape),
        dtype=spec.dtype,
        filters=None,
        serializer=_pcodec(spec, rows.rows_per_chunk) if spec.is_numeric else BytesCodec(),
        compressors=[Crc32cCodec()] if spec.is_numeric else [ZstdCodec(level=3), Crc32cCodec()],
        fill_value=False if spec.dtype == "bool" else 0,
        dimension_names=("row", *_DIMENSIONS.get(spec.name, ("position", "channel"))),
    )


def _pcodec(spec: ArraySpec, rows_per_chunk: int) -> PCodec:
    """pcodec for the chunks of this array; where columns lie one behind the other, each is a page."""
    if spec.order == "plain":
        return PCodec(level=8)
    column = rows_per_chunk * spec.row_shape[0]
    return PCodec(level=8, equal_pages_up_to=PAGE_NUMBERS if spec.order == "packed" else column)


_DIMENSIONS = {
    "tokens": ("token",),
    "document_start": ("position",),
    "loss_mask": ("position",),
    "role": ("position",),
    "logits/ids": ("position", "entry"),
    "logits/values": ("position", "entry"),
    "logits/log_mass": ("position", "node"),
    "logits/position": ("position", "number"),
    "hidden/mean_scales": ("position", "group"),
    "exact/hidden_scales": ("position", "group"),
}


def encode_shard(
    manifest: Manifest, documents: Mapping[str, bytes], shard: int, arrays: Arrays
) -> dict[str, memoryview]:
    """The objects of one shard by key, as Zarr writes them; `arrays`, those of `row_specs`, hold its rows on axis 0.

    `documents` are those of `describe_arrays`. Zarr encodes into a store in memory, so what is digested is what is
    published. The bytes are returned as views: copying hundreds of MiB would halt all other Python threads.
    """
    rows, stored = manifest.shard_rows(shard), packed(manifest, arrays)
    objects: dict[str, Buffer] = {
        key: cpu.Buffer.from_bytes(document) for key, document in {GROUP_KEY: _BARE_GROUP, **documents}.items()
    }
    with quiet_zarr():
        group = zarr.open_group(MemoryStore(objects), mode="r+")
        for spec in array_specs(manifest):
            # Chunks of zeros are written too: a missing object must always mean a lost one.
            array = open_array(group, spec.name).with_config({"write_empty_chunks": True})
            array[rows.start : rows.stop] = stored[spec.name]
    keys = [spec.data_key(shard) for spec in array_specs(manifest)]
    return {key: objects[key].as_numpy_array().data.cast("B") for key in keys}


_BARE_GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of the group, by its name in docs/format.md."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bit patterns (any shape, uint16) as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
