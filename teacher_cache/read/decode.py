"""Rows of a cache as they are stored, and what they decode to; rows read from a cache and rows just computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.quantize import dequantize, unpack_int4

FIELDS = ("tokens", "document_start", "loss_mask", "ids", "values", "log_mass", "final_hidden", "hidden_mean")
"""What `CachedRows` decodes to."""


@dataclass(frozen=True)
class CachedRows:
    """n rows of a cache as NumPy arrays; a single row has the same fields without the leading axis.

    tokens (n, T+1) uint32; document_start and loss_mask (n, T) bool. In sparse mode: ids (n, T, K) uint32; values
    (n, T, K) float32 logits, the top_k largest first, then the sampled, unused places -inf; log_mass (n, T, J)
    float32: the mass outside the top_k at the nodes, relative to the largest logit. In exact mode: final_hidden
    (n, T, d) float32. hidden_mean (n, ceil(T/stride), d) float32: every stride-th position. Fields that are not cached
    are None. Position t holds the distribution of tokens[t+1]; positions where loss_mask is false hold zeros.

    Rows take the memory that their stored types take: values and hidden states are widened when first asked for, and
    kept from then on.
    """

    manifest: Manifest
    arrays: Mapping[str, NDArray[Any]]
    """As stored, by their names in docs/format.md."""

    @property
    def tokens(self) -> NDArray[np.uint32]:
        return self.arrays["tokens"]

    @property
    def document_start(self) -> NDArray[np.bool_]:
        return self.arrays["document_start"]

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        return self.arrays["loss_mask"]

    @property
    def ids(self) -> NDArray[np.uint32] | None:
        return self.arrays.get("logits/ids")

    @cached_property
    def values(self) -> NDArray[np.float32] | None:
        values = self.arrays.get("logits/values")
        return None if values is None else as_tensor(values).float().numpy()

    @property
    def log_mass(self) -> NDArray[np.float32] | None:
        return self.arrays.get("logits/log_mass")

    @cached_property
    def final_hidden(self) -> NDArray[np.float32] | None:
        return self._states("exact/hidden")

    @cached_property
    def hidden_mean(self) -> NDArray[np.float32] | None:
        return self._states("hidden/mean")

    def _states(self, name: str) -> NDArray[np.float32] | None:
        if name not in self.arrays:
            return None
        decoded = decode_states(name, self.manifest, lambda key: as_tensor(self.arrays[key]))
        states: NDArray[np.float32] = decoded.numpy()
        return states

    def select(self, index: Any) -> "CachedRows":
        """Every array indexed on axis 0: an integer selects one row, a slice or an array of integers several."""
        return CachedRows(self.manifest, {name: array[index] for name, array in self.arrays.items()})


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array's memory as a tensor; uint32 as int32 and uint16 as int16, which every device knows."""
    signed = {"uint16": np.int16, "uint32": np.int32}.get(array.dtype.name)
    return torch.from_numpy(array if signed is None else array.view(signed))


def decode_states(name: str, manifest: Manifest, stored: Callable[[str], Tensor]) -> Tensor:
    """Hidden states (…, d) float32 of the array `name`, on the device that `stored` gives its tensors on."""
    precision = manifest.hidden.mean if name == "hidden/mean" else manifest.targets.exact_hidden
    kept = stored(name)
    if precision == "lossless":
        return (kept.view(torch.bfloat16) if kept.dtype == torch.int16 else kept).float()
    codes = unpack_int4(kept, manifest.hidden_size) if precision == "int4" else kept
    return dequantize(codes, stored(f"{name}_scales"))
