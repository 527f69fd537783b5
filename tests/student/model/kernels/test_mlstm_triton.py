"""What surrounds mlstm_kernels' kernels: sizes they take, and who is turned away. They need a CUDA device, and are
held against plain torch there by tests/gpu/test_mlstm_gpu.py.
"""

import pytest
import torch

from student.model.kernels.chunks import Memory
from student.model.kernels.mlstm_triton import (
    HEAD_MULTIPLE,
    LONGEST_CHUNK,
    _folded,
    _initial_states,
    _padded_head,
    _padded_length,
)


@pytest.mark.parametrize(
    ("head", "padded"), [(1, 16), (16, 16), (17, 32), (48, 64), (64, 64), (65, 128), (96, 128), (160, 192)]
)
def test_heads_are_filled_up_to_what_blocks_divide(head: int, padded: int) -> None:
    assert _padded_head(head) == padded
    assert padded >= HEAD_MULTIPLE or padded.bit_count() == 1


@pytest.mark.parametrize(("length", "padded"), [(1, 16), (20, 32), (127, 128), (128, 128), (129, 256), (300, 384)])
def test_lengths_are_filled_up_to_whole_chunks(length: int, padded: int) -> None:
    assert _padded_length(length) == padded
    assert padded % min(LONGEST_CHUNK, padded) == 0


def test_heads_of_all_rows_become_heads_of_one_row() -> None:
    x = torch.arange(24).view(2, 3, 4)
    assert torch.equal(_folded(x), x.reshape(1, 6, 4))


def test_a_memory_is_scaled_and_filled_up_as_the_kernels_want_it() -> None:
    """xlstm scales keys by 1/√D, the kernels queries."""
    memory = Memory(torch.ones(1, 2, 9, 9), torch.ones(1, 2, 9), torch.full((1, 2), 5.0))
    found = _initial_states(memory, head=9, beside=7)
    assert found["c_initial"].shape == (1, 2, 16, 16)
    assert found["n_initial"][0, 0].tolist() == [3.0] * 9 + [0.0] * 7
    assert found["m_initial"].tolist() == [[[5.0], [5.0]]]
    assert _initial_states(None, head=9, beside=7) == {}
