"""The sum over layers on a GPU."""

import pytest
import torch

from delta_common.installed import has_triton
from teacher_cache.teacher.layer_sum import LayerSum

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed"),
]


def test_the_kernel_adds_in_turn() -> None:
    from tests.gpu import layer_sum_twin  # imports Triton

    layer_sum_twin.compare("cuda")


@pytest.mark.parametrize("layers", [1, 2, 5, 6, 28])
def test_a_gpu_sums_as_a_cpu_does(layers: int) -> None:
    states = torch.randn(layers, 2, 100, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    there, here = LayerSum(), LayerSum()
    for state in states:
        there.add(state.cuda())
        here.add(state)
    assert torch.equal(there.sum().cpu(), here.sum())
