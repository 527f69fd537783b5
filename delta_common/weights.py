"""The digest of a model's weights, by which a cache knows its teacher."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weights_sha256(tensors: "Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]") -> str:
    """SHA-256 in hexadecimal over names, types, shapes and bytes of a model's `state_dict()`, in the order of names.

    Pairs that come one by one, for tensors that are not all there at once, must be in that order.
    """
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()) if isinstance(tensors, Mapping) else tensors:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
