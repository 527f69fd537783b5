"""The processes that train together."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together, and its device."""

    rank: int
    world_size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        torch.distributed.all_reduce(values)
        return values


@contextlib.contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """Keep DeepSpeed from compiling, and silence its deprecation warnings, while it is imported and called."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
        import deepspeed.ops

        # What DeepSpeed may compile: nothing on a CPU; on a GPU its own list stays.
        if not torch.accelerator.is_available():
            deepspeed.ops.__compatible_ops__ = {}
        yield


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that a launcher (torchrun, deepspeed) started, or be the only one; leave at the end."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    accelerator.set_device(local_rank)
    backend = accelerator.communication_backend_name()
    device = torch.device(accelerator.device_name(local_rank))
    # Without it torch guesses the device at the first barrier, and warns of that.
    bound = device if device.type == "cuda" else None
    ours = not torch.distributed.is_initialized()
    if ours and os.environ.keys() >= LAUNCHED:
        torch.distributed.init_process_group(backend, device_id=bound)
    elif ours:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, device_id=bound)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    linear = functional.linear
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        functional.linear = linear  # which ZeRO 3 replaces for good
        if ours:
            _leave()


def _leave() -> None:
    import deepspeed.comm

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
