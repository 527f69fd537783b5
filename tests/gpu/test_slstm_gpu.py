"""The sLSTM kernels on a GPU, at sizes people train: against xlstm's loop in float64, values and gradients."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.slstm_cases import Sequence, relative_errors, results, worst_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PAPER = Sequence(batch=8, length=64, heads=16, head_dim=96, device="cuda")
SMALL = Sequence(batch=8, length=64, heads=12, head_dim=48, device="cuda")
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [PAPER, SMALL], ids=["paper", "small"])
@pytest.mark.parametrize("starts", [None, 0.05])
def test_triton_is_the_loop(size: Sequence, dtype: torch.dtype, starts: float | None) -> None:
    assert worst_error(replace(size, dtype=dtype, starts=starts), "triton") < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [8, 24, 48, 128])
def test_every_size_of_head_and_more_rows_than_a_program_takes(head_dim: int, dtype: torch.dtype) -> None:
    sequence = Sequence(20, 9, heads=3, head_dim=head_dim, from_state=True, starts=0.2, dtype=dtype, device="cuda")
    assert worst_error(sequence, "triton") < TOLERANCES[dtype]


@pytest.mark.parametrize("length", [1, 2])
def test_a_step_of_generation(length: int) -> None:
    sequence = replace(PAPER, batch=1, length=length, from_state=True, dtype=torch.float32)
    assert worst_error(sequence, "triton") < TOLERANCES[torch.float32]


def test_auto_takes_triton_where_it_can_and_plain_torch_elsewhere() -> None:
    sequence = replace(SMALL, length=5, dtype=torch.float32)
    automatic, ours = results(sequence, "auto"), results(sequence, "triton")
    assert all(torch.equal(automatic[name], ours[name]) for name in ("output", "final"))
    assert worst_error(replace(sequence, head_dim=144, heads=2), "auto") < TOLERANCES[torch.float32]
    assert worst_error(replace(sequence, dtype=torch.float64), "auto") < 1e-10


def test_plain_torch_is_the_loop_on_a_gpu_too() -> None:
    sequence = replace(SMALL, starts=0.05)
    errors = relative_errors(results(sequence, "torch"), results(sequence, "naive"))
    assert max(errors.values()) < 1e-10
