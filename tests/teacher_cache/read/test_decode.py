from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from teacher_cache.read.decode import CachedRows, decode_entries, decode_rows, decode_states
from teacher_cache.targets.quantize import Precision, pack_int4, quantize
from tests.helpers.golden import golden_manifest

STATES = torch.randn(2, 3, 70, generator=torch.Generator().manual_seed(0))


def refuse(name: str) -> NDArray[Any]:
    raise AssertionError(f"nobody needs {name}")


def test_what_is_not_kept_is_not_read() -> None:
    assert decode_states("hidden/mean", "none", 70, refuse) is None


def test_lossless_states_are_widened() -> None:
    bits = STATES.bfloat16().view(torch.int16).numpy().view(np.uint16)
    for stored, expected in ((bits, STATES.bfloat16()), (STATES.half().numpy(), STATES.half())):
        found = decode_states("x", "lossless", 70, {"x": stored}.__getitem__)
        assert found is not None
        assert found.dtype == np.float32
        assert np.array_equal(found, expected.float().numpy())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_codes_are_multiplied_by_their_groups_scales(precision: Precision) -> None:
    codes, scales = quantize(STATES, precision, None)
    stored = {"x": (pack_int4(codes) if precision == "int4" else codes).numpy(), "x_scales": scales.numpy()}
    found = decode_states("x", precision, 70, stored.__getitem__)
    steps = np.repeat(scales.float().numpy(), 64, axis=-1)[..., :70]
    assert np.array_equal(found, codes.numpy().astype(np.float32) * steps)


def arrays(kind: str) -> dict[str, NDArray[Any]]:
    manifest = golden_manifest(kind)
    places = manifest.targets.entries
    return {
        "tokens": np.zeros((2, 7), np.uint32),
        "document_start": np.zeros((2, 6), bool),
        "loss_mask": np.ones((2, 6), bool),
        "logits/ids": np.zeros((2, 6, places), np.uint32),
        "logits/values": np.full((2, 6, places), 1.5, np.float16),
        "logits/log_mass": np.zeros((2, 6, 5), np.float32),
        "hidden/mean": np.full((2, 6, 70), 0x3F80, np.uint16),
    }


def test_rows_hold_the_entries_or_the_final_states() -> None:
    stored = arrays("top")
    rows = decode_rows(golden_manifest("top"), stored.__getitem__, decode_entries(stored.__getitem__))
    assert rows.values is not None
    assert rows.values.dtype == np.float32
    assert (rows.values == 1.5).all()
    assert rows.final_hidden is None
    assert rows.hidden_mean is not None
    assert (rows.hidden_mean == 1.0).all()


def test_one_row_has_no_axis_of_rows_and_what_is_not_cached_stays_none() -> None:
    stored = arrays("top")
    rows = CachedRows(**dict.fromkeys(CachedRows.__dataclass_fields__) | {"tokens": stored["tokens"]})
    assert rows.select(1).tokens.shape == (7,)
    assert rows.select(slice(0, 1)).tokens.shape == (1, 7)
    assert rows.select(np.array([1, 0, 1])).tokens.shape == (3, 7)
    assert rows.select(0).hidden_mean is None
