"""Stochastic rounding on a GPU."""

import importlib.util

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def test_the_kernel_rounds_as_pytorch_does() -> None:
    import quantize_twin  # imports Triton

    quantize_twin.compare("cuda")
