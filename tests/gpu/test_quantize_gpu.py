"""Stochastic rounding on a GPU."""

import pytest
import torch

from delta_common.installed import has_triton

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed"),
]


def test_the_kernel_rounds_as_pytorch_does() -> None:
    from tests.gpu import quantize_twin  # imports Triton

    quantize_twin.compare("cuda")
