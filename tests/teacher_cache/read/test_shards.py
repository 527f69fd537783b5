"""Chunks of whole objects beside Zarr, their twin: the same to the bit, and no damage is decoded in silence."""

from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.arrays import ArraySpec, array_specs
from teacher_cache.format.codec import quiet_zarr
from teacher_cache.format.manifest import Manifest
from teacher_cache.read import cache as cache_module
from teacher_cache.read.cache import DECODING_ERRORS, Cache, open_cache
from teacher_cache.read.shards import CHECKSUM, can_decode, decode_chunks
from tests.helpers.golden import KINDS, golden_cache, golden_manifest
from tests.helpers.reads import count_reads


def by_zarr(path: Path, spec: ArraySpec, rows: range) -> NDArray[Any]:
    with quiet_zarr():
        array = zarr.open_group(path, mode="r")[spec.name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[rows.start : rows.stop])


def decoded(data: bytes, spec: ArraySpec, manifest: Manifest, shard: int) -> NDArray[Any]:
    out = np.full((len(manifest.shard_rows(shard)), *spec.row_shape), 1, spec.dtype)
    decode_chunks(data, spec, manifest.rows, range(-(-len(out) // manifest.rows.rows_per_chunk)), out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_of_a_whole_and_of_a_short_shard_is_what_zarr_reads(kind: str) -> None:
    path, manifest = golden_cache(kind), golden_manifest(kind)
    assert [len(manifest.shard_rows(shard)) for shard in range(manifest.shard_count)] == [4, 1]
    for spec in array_specs(manifest):
        assert can_decode(spec)
        for shard in range(manifest.shard_count):
            found = decoded((path / spec.data_key(shard)).read_bytes(), spec, manifest, shard)
            expected = by_zarr(path, spec, manifest.shard_rows(shard))
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected), (spec.name, shard)


def test_several_chunks_and_shards_at_once(synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(synthetic_cache)
    assert cache.manifest.rows.rows_per_chunk < cache.manifest.rows.rows_per_shard * 2
    with monkeypatch.context() as slow:
        slow.setattr(cache_module, "can_decode", lambda _: False)
        plain = cache.rows(range(20)).arrays
    monkeypatch.setattr(zarr.Array, "__getitem__", None)
    for rows in (range(20), range(8), range(8, 20), range(16, 20)):
        for name, array in cache.rows(rows).arrays.items():
            assert np.array_equal(array, plain[name][rows.start : rows.stop]), (name, rows)


def test_a_part_of_a_shard_is_left_to_zarr(synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(synthetic_cache)
    whole = cache.rows(range(20))
    monkeypatch.setattr(Cache, "_decoded", None)
    for rows in (range(7), range(1, 8), range(16, 19), range(15, 20)):
        assert np.array_equal(cache.tokens(rows), whole.tokens[rows.start : rows.stop])


def test_chunks_of_shards_that_are_held_are_decoded_from_one_reading(
    path_of_two_chunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(path_of_two_chunks)
    assert (cache.manifest.rows.rows_per_chunk, cache.manifest.rows.rows_per_shard, len(cache)) == (8, 16, 44)
    whole = cache.rows(range(44)).arrays
    read = count_reads(monkeypatch)
    monkeypatch.setattr(zarr.Array, "oindex", None)
    cache.hold([0, 1, 2])
    for rows in ([3, 17], [9], [40], [8, 30, 43]):
        chunks = cache.whole_chunks(np.array(rows))
        for name, array in cache.rows(chunks).arrays.items():
            assert np.array_equal(array, whole[name][chunks]), (name, rows)
    assert read == Counter(spec.data_key(shard) for spec in array_specs(cache.manifest) for shard in range(3))
    cache.hold([1])
    assert list(cache._held) == [1]
    assert cache.rows(range(16, 24)).arrays.keys() == whole.keys()
    assert read.total() == 3 * len(array_specs(cache.manifest))


@pytest.fixture
def path_of_two_chunks(tmp_path: Path) -> Path:
    make_synthetic_cache(
        tmp_path / "cache", rows=44, seq_len=4, vocab_size=32, top_k=4, hidden_size=8, rows_per_shard=16
    )
    return tmp_path / "cache"


def _spec(name: str) -> ArraySpec:
    return next(spec for spec in array_specs(golden_manifest("sampled")) if spec.name == name)


@given(name=st.sampled_from(["tokens", "loss_mask", "logits/values", "hidden/mean"]), data=st.data())
def test_any_damaged_byte_and_any_cut_is_an_error(name: str, data: st.DataObject) -> None:
    spec, manifest = _spec(name), golden_manifest("sampled")
    sound = (golden_cache("sampled") / spec.data_key(0)).read_bytes()
    place = data.draw(st.integers(0, len(sound) - 1))
    flipped = bytearray(sound)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), sound[:place], sound[place + 1 :] if place else b""):
        with pytest.raises(DECODING_ERRORS):
            decoded(damaged, spec, manifest, 0)


def _with_index(content: bytes, entry: tuple[int, int]) -> bytes:
    index = np.array(entry, "<u8").tobytes()
    return content + index + google_crc32c.value(index).to_bytes(CHECKSUM, "little")


@pytest.mark.parametrize("name", ["tokens", "loss_mask"])
def test_a_chunk_of_another_size_or_that_was_not_written_is_an_error(name: str) -> None:
    """Its checksums hold; Zarr reads a chunk that was not written as zeros."""
    spec, manifest = _spec(name), golden_manifest("sampled")
    sound = (golden_cache("sampled") / spec.data_key(0)).read_bytes()
    longer = ArraySpec(spec.name, (spec.row_shape[0] + 1,), spec.dtype)
    shorter = ArraySpec(spec.name, (spec.row_shape[0] - 1,), spec.dtype)
    for other in (longer, shorter):
        with pytest.raises(ValueError, match="chunk 0 holds another number of items"):
            decoded(sound, other, manifest, 0)
    with pytest.raises(ValueError, match="checksum"):
        decoded(_with_index(sound, (2**64 - 1, 2**64 - 1)), spec, manifest, 0)
