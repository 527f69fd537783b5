"""Chunks of whole objects to arrays. Zarr takes 0.1 ms for each, three times what decoding takes; Zarr is the twin.

What is read is in docs/format.md, "Chunks, shards, codecs". Every chunk's checksum is checked, as Zarr does.
"""

from collections.abc import Callable, Sequence

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pcodec import standalone

from teacher_cache.format.arrays import ArraySpec
from teacher_cache.format.manifest import RowLayout

CHECKSUM = 4
"""Bytes of a crc32c, behind what it is taken of."""
INDEX_ENTRY = np.dtype("<u8")
"""The shard's index has two for each chunk: where it begins, and its bytes."""

Array = NDArray[np.generic]

Decoder = Callable[[bytes, Array], int]
"""Fills an array (n,) from a chunk's bytes without their checksum; returns how many of its items that were."""


def can_decode(spec: ArraySpec) -> bool:
    """Whether `decode_chunks` knows the codecs of an array."""
    return spec.codecs in _DECODERS


def decode_chunks(data: bytes, spec: ArraySpec, layout: RowLayout, chunks: Sequence[int], out: Array) -> None:
    """Decode chunks of an array's object of one shard into `out`, their rows (n, …) of the array's dtype, C-contiguous.

    Chunks count from 0 within the shard. Raises `ValueError`, or what a codec raises, where the bytes are not such an
    object.
    """
    decode, step = _DECODERS[spec.codecs], layout.rows_per_chunk
    index = _index(data, layout.rows_per_shard // step)
    for number, chunk in enumerate(chunks):
        first, size = index[chunk]
        rows = out[number * step : (number + 1) * step]
        whole = rows if len(rows) == step else np.empty((step, *spec.row_shape), out.dtype)
        if decode(_checked(data[first : first + size]), whole.reshape(-1)) != whole.size:
            raise ValueError(f"chunk {chunk} holds another number of items than the manifest says")
        if whole is not rows:  # the last chunk of the last shard, which is filled up
            rows[:] = whole[: len(rows)]


def _index(data: bytes, chunks: int) -> list[list[int]]:
    """Where each chunk begins, and its bytes; a chunk that was not written is behind the end of any object."""
    entries = _checked(data[-(2 * INDEX_ENTRY.itemsize * chunks + CHECKSUM) :])
    places: list[list[int]] = np.frombuffer(entries, INDEX_ENTRY).reshape(chunks, 2).tolist()
    return places


def _checked(part: bytes) -> bytes:
    content, checksum = part[:-CHECKSUM], part[-CHECKSUM:]
    if google_crc32c.value(content).to_bytes(CHECKSUM, "little") != checksum:
        raise ValueError("stored and computed checksum do not match")
    return content


def _pcodec(content: bytes, out: Array) -> int:
    progress = standalone.simple_decompress_into(content, out)
    return int(progress.n_processed) if progress.finished else -1


def _zstd(content: bytes, out: Array) -> int:
    items = np.frombuffer(Zstd().decode(content), out.dtype)
    if len(items) == len(out):
        out[:] = items
    return len(items)


_DECODERS: dict[tuple[str, ...], Decoder] = {
    ("numcodecs.pcodec", "crc32c"): _pcodec,
    ("bytes", "zstd", "crc32c"): _zstd,
}
