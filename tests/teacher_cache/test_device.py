"""Copies between host and GPU, on a CPU, where there is nothing to copy; tests/gpu has builds that use them."""

import pytest
import torch

from teacher_cache.device import to_device, to_host

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor
    arrived = to_host({"x": tensor}).arrived()
    assert arrived["x"] is tensor
    assert to_host({}).arrived() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_what_goes_to_a_gpu_comes_back() -> None:
    gpu = torch.device("cuda")
    tensors = {"x": torch.arange(1000), "y": torch.rand(7, 3).half()}
    arrived = to_host({name: to_device(tensor, gpu) for name, tensor in tensors.items()}).arrived()
    for name, tensor in tensors.items():
        assert not arrived[name].is_cuda
        assert torch.equal(arrived[name], tensor), name
