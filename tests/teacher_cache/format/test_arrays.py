import math

import pytest
import zarr

from teacher_cache.format.arrays import ArraySpec, array_specs, default_rows_per_chunk
from teacher_cache.format.codec import quiet_zarr
from tests.helpers.golden import KINDS, changed, golden_cache, golden_manifest


@pytest.mark.parametrize("kind", KINDS)
def test_the_arrays_are_those_of_the_golden_caches(kind: str) -> None:
    specs = array_specs(golden_manifest(kind))
    with quiet_zarr():
        group = zarr.open_group(golden_cache(kind), mode="r")
        for spec in specs:
            array = group[spec.name]
            assert isinstance(array, zarr.Array)
            assert (array.shape[1:], str(array.dtype)) == (spec.row_shape, spec.dtype), spec.name
            assert array.metadata.to_dict()["codecs"][0]["name"] == "sharding_indexed"
    objects = {str(p.relative_to(golden_cache(kind))) for p in golden_cache(kind).rglob("c/**/*") if p.is_file()}
    assert objects == {spec.data_key(shard) for spec in specs for shard in (0, 1)}


def test_states_are_codes_and_scales_unless_they_are_lossless() -> None:
    manifest = golden_manifest("top")
    width = manifest.hidden_size

    def states(precision: str) -> dict[str, ArraySpec]:
        specs = array_specs(changed(manifest, "hidden", mean=precision, stride=4))
        return {spec.name: spec for spec in specs if spec.name.startswith("hidden")}

    positions, groups = 2, math.ceil(width / 64)  # positions 0 and 4 of 6
    scales = ArraySpec("hidden/mean_scales", (positions, groups), "float16")
    assert states("none") == {}
    assert states("int8") == {
        "hidden/mean": ArraySpec("hidden/mean", (positions, width), "int8"),
        "hidden/mean_scales": scales,
    }
    assert states("int4")["hidden/mean"] == ArraySpec("hidden/mean", (positions, width // 2), "uint8")
    assert set(states("lossless")) == {"hidden/mean"}
    for dtype, stored in {"bfloat16": "uint16", "float16": "float16", "float32": "float32"}.items():
        manifest = changed(manifest, "teacher", dtype=dtype)
        assert states("lossless")["hidden/mean"].dtype == stored


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (7, 7), (8, 8), (11, 1), (12, 6), (256, 8), (9, 3)])
def test_chunks_divide_a_shard(rows: int, chunk: int) -> None:
    assert default_rows_per_chunk(rows) == chunk


def test_numbers_and_bytes_have_other_codecs() -> None:
    assert ArraySpec("x", (), "float16").codecs == ("numcodecs.pcodec", "crc32c")
    for dtype in ("bool", "int8", "uint8"):
        assert ArraySpec("x", (), dtype).codecs == ("bytes", "zstd", "crc32c")
