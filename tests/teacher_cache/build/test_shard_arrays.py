"""A shard's arrays are filled where they belong, in the dtypes that are stored."""

import numpy as np
import pytest
import torch

from delta_common.errors import UserError
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.corpus.rows import TokenRow
from teacher_cache.format.arrays import row_specs
from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.keep import KeptTargets
from teacher_cache.targets.randomness import Purpose, row_uniforms
from tests.helpers.golden import changed, golden_manifest


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return golden_manifest("sampled")


def test_arrays_begin_as_zeros_of_the_stored_shapes(manifest: Manifest) -> None:
    arrays = ShardArrays.empty(manifest, range(3, 5))
    assert {name: (a.shape, a.dtype.name) for name, a in arrays.by_name.items()} == {
        spec.name: ((2, *spec.row_shape), spec.dtype) for spec in row_specs(manifest)
    }
    assert not any(array.any() for array in arrays.by_name.values())


def test_rows_keep_tokens_starts_and_mask(manifest: Manifest) -> None:
    length = manifest.seq_len
    row = TokenRow(np.arange(length + 1, dtype=np.uint32), np.arange(length) == 2, np.arange(length) < 3)
    arrays = ShardArrays.empty(manifest, range(2))
    arrays.put_rows([row, row])
    assert np.array_equal(arrays.tokens[1], row.tokens)
    assert np.array_equal(arrays.document_start[0], row.document_start)
    assert np.array_equal(arrays.loss_mask[1], row.loss_mask)


def test_random_numbers_belong_to_the_row_whatever_the_batch(manifest: Manifest) -> None:
    offsets = ShardArrays.empty(manifest, range(10, 14)).sampling_offsets(slice(1, 3))
    expected = row_uniforms(manifest.targets.seed, 12, Purpose.SAMPLING, manifest.seq_len)
    assert np.array_equal(offsets[1].numpy(), expected)


def test_targets_go_to_their_positions(manifest: Manifest) -> None:
    arrays, entries = ShardArrays.empty(manifest, range(4)), manifest.targets.entries
    nodes = len(manifest.targets.node_temperatures)
    kept = KeptTargets(
        torch.full((1, entries), 7), torch.full((1, entries), 2.5), torch.full((1, nodes), -1.5), torch.zeros(1)
    )
    place = manifest.seq_len + 3  # the second row of the batch, position 3
    arrays.put(slice(1, 3), arrays.stored_targets(slice(1, 3), torch.tensor([place]), kept))
    assert (arrays.by_name["logits/ids"][2, 3] == 7).all()
    assert (arrays.by_name["logits/values"][2, 3] == 2.5).all()
    assert np.count_nonzero(arrays.by_name["logits/values"]) == entries


def test_bfloat16_states_are_stored_as_their_bits_and_masked_ones_as_zeros(manifest: Manifest) -> None:
    wide = changed(changed(manifest, "teacher", dtype="bfloat16"), "hidden", mean="lossless", stride=1)
    arrays = ShardArrays.empty(wide, range(1))
    arrays.loss_mask[0, 0] = True
    states = torch.full((1, wide.seq_len, wide.hidden_size), 1.5)
    arrays.put(slice(0, 1), arrays.stored_hidden_mean(slice(0, 1), states))
    bits = arrays.by_name["hidden/mean"]
    assert bits.dtype == np.uint16
    assert (bits[0, 0] == 0x3FC0).all()
    assert not bits[0, 1:].any()


def test_a_number_that_is_not_finite_is_not_put(manifest: Manifest) -> None:
    arrays = ShardArrays.empty(manifest, range(8, 12))
    wrong = torch.zeros(2, *arrays.by_name["logits/log_mass"].shape[1:])
    wrong[1, 4, 0] = torch.nan
    with pytest.raises(UserError, match=r"logits/log_mass is not finite at row 10, position 4"):
        arrays.put(slice(1, 3), {"logits/log_mass": wrong})
