"""Rows of a cache as they are stored, and what they decode to; rows read from a cache and rows just computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.quantize import dequantize, in_steps, of_channels, unpack
from teacher_cache.targets.randomness import rounding_uniforms
from teacher_cache.targets.states import KEYS, PHASES, SETS, channel_sets, kept_positions

FIELDS = (
    *("tokens", "document_start", "loss_mask", "role", "ids", "values", "log_mass", "final_hidden"),
    *("hidden_mean", "hidden_positions", "hidden_channels"),
)
"""What `CachedRows` decodes to."""


@dataclass(frozen=True)
class CachedRows:
    """n rows of a cache as NumPy arrays; a single row has the same fields without the leading axis.

    tokens (n, T+1) uint32; document_start and loss_mask (n, T) bool; role (n, T) uint8 of conversations only, whose
    token the label is, by its code in `format.arrays.ROLES`. In sparse mode: ids (n, T, K) uint32; values
    (n, T, K) float32 logits, the top_k largest first, then the sampled, unused places -inf; log_mass (n, T, J)
    float32: the mass outside the top_k at the nodes, relative to the largest logit. In exact mode: final_hidden
    (n, T, d) float32. hidden_mean (n, P, k) float32: the averaged states at the kept positions and channels, which
    hidden_positions (n, P) and hidden_channels (n, P, k) name; the latter is None where all channels are kept, k = d.
    Fields that are not cached are None. Position t holds the distribution of tokens[t+1]; positions where loss_mask is
    false hold zeros.

    Rows take the memory that their stored types take: values and hidden states are widened when first asked for, and
    kept from then on.
    """

    manifest: Manifest
    arrays: Mapping[str, NDArray[Any]]
    """As stored, by their names in docs/format.md, and what `drawn_of_rows` says of the rows."""

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
    def role(self) -> NDArray[np.uint8] | None:
        return self.arrays.get("role")

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

    @property
    def hidden_positions(self) -> NDArray[np.int64] | None:
        """Position of each of hidden_mean's; T and above are unused places, which hold zeros."""
        if "hidden/mean" not in self.arrays:
            return None
        phases = self.arrays.get(PHASES, np.zeros(self.loss_mask.shape[:-1], np.int64))
        return kept_positions(self.manifest.hidden, self.manifest.seq_len, phases)

    @property
    def hidden_counted(self) -> NDArray[np.bool_]:
        """(n, P) bool: whether a place of hidden_mean holds a position that counts."""
        positions = self.hidden_positions
        if positions is None:
            return np.zeros((*self.loss_mask.shape[:-1], 0), bool)
        length = self.loss_mask.shape[-1]
        counted = np.take_along_axis(self.loss_mask, np.minimum(positions, length - 1), axis=-1)
        within: NDArray[np.bool_] = counted & (positions < length)
        return within

    @property
    def hidden_channels(self) -> NDArray[np.int64] | None:
        channels = self.manifest.hidden.channels
        if SETS not in self.arrays or channels is None:
            return None
        members: NDArray[np.int64] = channel_sets(channels).members[self.arrays[SETS]]
        return members

    def _states(self, name: str) -> NDArray[np.float32] | None:
        if name not in self.arrays:
            return None
        decoded = decode_states(name, self.manifest, self._tensor)
        states: NDArray[np.float32] = decoded.numpy()
        return states

    def _tensor(self, name: str) -> Tensor | None:
        array = self.arrays.get(name)
        return None if array is None else as_tensor(np.asarray(array))

    def select(self, index: Any) -> "CachedRows":
        """Every array indexed on axis 0: an integer selects one row, a slice or an array of integers several."""
        return CachedRows(self.manifest, {name: array[index] for name, array in self.arrays.items()})


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array's memory as a tensor; uint32 as int32 and uint16 as int16, which every device knows."""
    signed = {"uint16": np.int16, "uint32": np.int32}.get(array.dtype.name)
    return torch.from_numpy(array if signed is None else array.view(signed))


def decode_states(name: str, manifest: Manifest, stored: Callable[[str], Tensor | None]) -> Tensor:
    """Hidden states (…, d) or (…, k) float32 of the array `name`, on the device that `stored` gives its tensors on."""
    if name == "hidden/mean":
        return decode_averaged(manifest, stored)[0]
    kept = stored(name)
    scales = stored(f"{name}_scales") if manifest.targets.exact_hidden == "int8" else None
    assert kept is not None
    return _widened(kept) if scales is None else dequantize(kept, scales)


def decode_averaged(manifest: Manifest, stored: Callable[[str], Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Averaged states (n, P, k) float32, or (P, k) of a single row, and what rounding has added to their squares.

    The latter (n, P, k) is the variance of the rounding's error; None where nothing was rounded, or where it is not
    known, as in format version 1.
    """
    hidden, kept = manifest.hidden, stored("hidden/mean")
    assert kept is not None
    if hidden.mean == "lossless" or hidden.mean == "none":
        return _widened(kept), None
    scales = stored("hidden/mean_scales")
    assert scales is not None
    width, keys = hidden.width(manifest.hidden_size), stored(KEYS)
    codes = unpack(kept, hidden.mean, width)
    uniform = None if keys is None else rounding_uniforms(keys.view(-1), codes.shape[-2] * width).view(codes.shape)
    steps, sets = of_channels(scales, width), stored(SETS)
    if sets is not None and hidden.channels is not None:
        known = channel_sets(hidden.channels)
        steps = steps * of_sets(known.sizes[known.members], sets)
    states = in_steps(codes, uniform).mul_(steps)
    return states, None if uniform is None else steps.square().div_(12)


def of_sets(table: NDArray[Any], sets: Tensor) -> Tensor:
    """Rows (..., k) of a table (OFFSETS, k) that the sets (...) uint8 name, copied whole."""
    return functional.embedding(sets.int(), torch.from_numpy(table).to(sets.device))


def _widened(kept: Tensor) -> Tensor:
    return (kept.view(torch.bfloat16) if kept.dtype == torch.int16 else kept).float()
