"""What is packed unpacks to the bit, whichever places are used, whichever chunks there are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teacher_cache.format.arrays import ENTRIES, POSITION_NUMBERS, row_specs
from teacher_cache.format.manifest import Manifest
from teacher_cache.format.packing import packed, second_differences, summed_twice, unpacked
from tests.helpers.golden import changed, golden_manifest

STORED = ("logits/ids", "logits/values", POSITION_NUMBERS)


def manifest_of(rows_per_chunk: int = 4, **targets: object) -> Manifest:
    manifest = changed(golden_manifest("v2-sampled"), "rows", rows_per_chunk=rows_per_chunk, rows_per_shard=12)
    return changed(manifest, "targets", **targets)


def made_arrays(manifest: Manifest, rows: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Rows as a builder fills them: some positions left out by the mask, others with every place used, or one."""
    random = np.random.default_rng(seed)
    arrays = {spec.name: np.zeros((rows, *spec.row_shape), spec.dtype) for spec in row_specs(manifest)}
    mask = arrays["loss_mask"]
    mask[:] = random.random(mask.shape) < 0.8
    places = manifest.targets.entries
    counts = random.integers(1, places + 1, mask.shape)
    counts[0, :2] = 1, places
    used = mask[..., None] & (np.arange(places) < counts[..., None])
    values = random.normal(0, 9, used.shape).astype(manifest.targets.value_dtype)
    arrays["logits/values"][:] = np.where(used, values, np.where(mask[..., None], -np.inf, 0))
    arrays["logits/ids"][:] = np.where(used, random.integers(0, 2**32, used.shape), 0)
    steps = random.integers(-30_720, 6_000, arrays["logits/log_mass"].shape) * mask[..., None]
    arrays["logits/log_mass"][:] = steps * manifest.targets.log_mass_step
    return arrays


@given(
    rows=st.integers(1, 11),
    rows_per_chunk=st.sampled_from([1, 2, 3, 4, 6, 12]),
    shape=st.tuples(st.integers(1, 4), st.integers(0, 300), st.integers(2, 9)),
    value_dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 2**32),
)
def test_what_is_packed_unpacks_to_the_bit(
    rows: int, rows_per_chunk: int, shape: tuple[int, int, int], value_dtype: str, seed: int
) -> None:
    top_k, samples, nodes = shape
    temperatures = tuple(np.linspace(2, 1, nodes).tolist())
    manifest = manifest_of(
        rows_per_chunk, top_k=top_k, samples=samples, value_dtype=value_dtype, node_temperatures=temperatures
    )
    arrays = made_arrays(manifest, rows, seed)
    stored = packed(manifest, arrays)
    found = unpacked(manifest, *(stored[name] for name in STORED))  # type: ignore[arg-type]
    for name in ENTRIES:
        assert found[name].dtype == arrays[name].dtype
        assert found[name].tobytes() == arrays[name].tobytes(), name
    assert stored["tokens"] is arrays["tokens"]


def test_entries_lie_together_with_zeros_behind_them_and_numbers_by_column() -> None:
    manifest = manifest_of(rows_per_chunk=2)
    arrays = made_arrays(manifest, 3)
    stored = packed(manifest, arrays)
    used = arrays["loss_mask"][..., None] & (arrays["logits/values"] > -np.inf)
    for rows in (slice(0, 2), slice(2, 3)):
        count = used[rows].sum()
        assert 0 < count < used[rows].size
        for name in STORED[:2]:
            flat = stored[name][rows].reshape(-1)
            assert np.array_equal(flat[:count], arrays[name][rows][used[rows]])
            assert not flat[count:].any()
        columns = stored[POSITION_NUMBERS][rows].reshape(-1, used[rows][..., 0].size)
        assert np.array_equal(columns[0], used[rows].sum(-1).reshape(-1))
        first_node = np.asarray(arrays["logits/log_mass"][rows, ..., 0], np.float64).reshape(-1)
        assert np.array_equal(columns[1] * manifest.targets.log_mass_step, first_node)


def test_differences_by_hand() -> None:
    steps = np.array([[5, 7, 10, 8], [0, 0, 0, 1]], np.int32)
    assert second_differences(steps).tolist() == [[5, 2, 1, -5], [0, 0, 0, 1]]
    columns = summed_twice(list(second_differences(steps).T))
    assert np.array_equal(np.stack(columns, axis=-1), steps)


@pytest.mark.parametrize("count", [-1, 10])
def test_a_number_of_entries_that_cannot_be_is_refused(count: int) -> None:
    manifest = manifest_of()
    stored = dict(packed(manifest, made_arrays(manifest, 4)))
    numbers = np.array(stored[POSITION_NUMBERS], np.int32)
    numbers.reshape(-1)[0] = count
    with pytest.raises(ValueError, match=f"{count}.* entries in 9 places"):
        unpacked(manifest, stored["logits/ids"], stored["logits/values"], numbers)


def test_version_1_and_exact_targets_are_stored_as_they_are() -> None:
    for kind in ("sampled", "exact"):
        arrays: dict[str, Any] = {}
        assert packed(golden_manifest(kind), arrays) is arrays
