"""Copies between host and GPU that neither waits for. On a CPU they do nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the copy to a GPU is queued on its stream."""
    waits = device.type == "cuda" and not tensor.is_cuda
    return tensor.pin_memory().to(device, non_blocking=True) if waits else tensor


@dataclass(frozen=True)
class OnTheirWay:
    """Tensors by name whose copy from a GPU may not have finished."""

    _tensors: Mapping[str, Tensor]
    _delivered: torch.cuda.Event | None

    def arrived(self) -> Mapping[str, Tensor]:
        """Wait for the copies; return the tensors on the CPU."""
        if self._delivered is not None:
            self._delivered.synchronize()
        return self._tensors


def to_host(tensors: Mapping[str, Tensor]) -> OnTheirWay:
    """Begin to copy tensors, all of one device, to the host."""
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return OnTheirWay(tensors, None)
    pinned = {name: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        pinned[name].copy_(tensor, non_blocking=True)
    delivered = torch.cuda.Event()  # type: ignore[no-untyped-call]
    delivered.record(torch.cuda.current_stream(next(iter(tensors.values())).device))
    return OnTheirWay(pinned, delivered)
