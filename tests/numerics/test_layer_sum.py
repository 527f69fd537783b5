"""The sum over layers: in turn or several at once, the same to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from teacher_cache.teacher.layer_sum import LayerSum

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_sum_in_float32_and_leaves_states_alone(dtype: torch.dtype) -> None:
    states = torch.randn(5, 2, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept, total = states.clone(), LayerSum()
    for state in states:
        total.add(state)
    assert total.sum().dtype == torch.float32
    assert torch.allclose(total.sum().double(), kept.double().sum(0), atol=1e-6)
    assert torch.equal(states, kept)


def test_nothing_has_no_sum() -> None:
    with pytest.raises(ValueError, match="no states"):
        LayerSum().sum()


def test_the_kernel_adds_in_turn() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    pytest.importorskip("triton")
    command = [sys.executable, str(TESTS / "layer_sum_twin.py"), "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == "equal\n", done.stderr
