"""Rows in their stored types, and what they decode to."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teacher_cache.format.manifest import Manifest
from teacher_cache.read.decode import FIELDS, CachedRows, as_tensor
from teacher_cache.targets.quantize import Precision, pack, quantize
from tests.helpers.golden import changed, golden_manifest

STATES = torch.randn(2, 3, 70, generator=torch.Generator().manual_seed(0))


def mean_of(precision: str, **arrays: NDArray[Any]) -> NDArray[np.float32]:
    """The averaged states of rows that have these arrays only."""
    manifest = changed(golden_manifest("top"), "hidden", mean=precision)
    found = CachedRows(manifest, {f"hidden/{name}": array for name, array in arrays.items()}).hidden_mean
    assert found is not None
    assert found.dtype == np.float32
    return found


def test_lossless_states_are_widened() -> None:
    bits = STATES.bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(mean_of("lossless", mean=bits), STATES.bfloat16().float().numpy())
    assert np.array_equal(mean_of("lossless", mean=STATES.half().numpy()), STATES.half().float().numpy())
    assert np.array_equal(mean_of("lossless", mean=STATES.numpy()), STATES.numpy())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_codes_are_multiplied_by_their_groups_scales(precision: Precision) -> None:
    codes, scales = quantize(STATES, precision, None)
    stored = pack(codes, precision)
    found = mean_of(precision, mean=stored.numpy(), mean_scales=scales.numpy())
    steps = np.repeat(scales.float().numpy(), 64, axis=-1)[..., :70]
    assert np.array_equal(found, codes.numpy().astype(np.float32) * steps)


def test_unsigned_numbers_become_tensors_of_the_same_memory() -> None:
    for dtype, signed in ((np.uint32, torch.int32), (np.uint16, torch.int16), (np.float16, torch.float16)):
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        tensor = as_tensor(array)
        assert tensor.dtype == signed
        array[1, 2] = 9
        assert tensor.tolist() == [[0, 1, 2], [3, 4, 9]]


def rows_of(manifest: Manifest) -> CachedRows:
    places = manifest.targets.entries
    return CachedRows(
        manifest,
        {
            "tokens": np.zeros((2, 7), np.uint32),
            "document_start": np.zeros((2, 6), bool),
            "loss_mask": np.ones((2, 6), bool),
            "logits/ids": np.zeros((2, 6, places), np.uint32),
            "logits/values": np.full((2, 6, places), 1.5, np.float16),
            "logits/log_mass": np.zeros((2, 6, 5), np.float32),
            "hidden/mean": np.full((2, 6, 70), 0x3F80, np.uint16),
        },
    )


def test_values_and_states_are_stored_in_16_bits_and_given_in_32() -> None:
    rows = rows_of(golden_manifest("top"))
    assert [array.itemsize for array in rows.arrays.values()] == [4, 1, 1, 4, 2, 4, 2]
    assert rows.values is not None
    assert rows.values.dtype == np.float32
    assert (rows.values == 1.5).all()
    assert rows.values is rows.values, "widened once"
    assert rows.hidden_mean is not None
    assert (rows.hidden_mean == 1.0).all()
    assert [name for name in FIELDS if getattr(rows, name) is None] == ["role", "final_hidden", "hidden_channels"]


def test_some_rows_and_one_row_without_the_axis_of_rows() -> None:
    rows = rows_of(golden_manifest("top"))
    rows.arrays["tokens"][1] = 5
    assert rows.select(1).tokens.tolist() == [5] * 7
    assert rows.select(slice(0, 1)).tokens.shape == (1, 7)
    assert rows.select(np.array([1, 0, 1])).tokens[:, 0].tolist() == [5, 0, 5]
    one = rows.select(0)
    assert one.values is not None
    assert one.hidden_mean is not None
    assert (one.values.shape[0], one.hidden_mean.shape) == (6, (6, 70))
