"""From stored arrays to what a reader is given; serves rows read from a cache and rows just computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.format.codec import widen_bfloat16
from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.quantize import dequantize, unpack_int4

Stored = Callable[[str], NDArray[Any]]
"""Returns n rows of an array, given its name in docs/format.md."""


@dataclass(frozen=True)
class CachedRows:
    """n rows of a cache as NumPy arrays; a single row has the same fields without the leading axis.

    tokens (n, T+1) uint32; document_start and loss_mask (n, T) bool. In sparse mode: ids (n, T, K) uint32; values
    (n, T, K) float32 logits, the top_k largest first, then the sampled, unused places -inf; log_mass (n, T, J)
    float32: the mass outside the top_k at the nodes, relative to the largest logit. In exact mode: final_hidden
    (n, T, d) float32. hidden_mean (n, ceil(T/stride), d) float32: every stride-th position. Fields that are not cached
    are None. Position t holds the distribution of tokens[t+1]; positions where loss_mask is false hold zeros.
    """

    tokens: NDArray[np.uint32]
    document_start: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]
    ids: NDArray[np.uint32] | None
    values: NDArray[np.float32] | None
    log_mass: NDArray[np.float32] | None
    final_hidden: NDArray[np.float32] | None
    hidden_mean: NDArray[np.float32] | None

    def select(self, index: Any) -> "CachedRows":
        """Every field indexed on axis 0: an integer selects one row, a slice or an array of integers several."""
        fields: dict[str, Any] = {name: None if a is None else a[index] for name, a in vars(self).items()}
        return CachedRows(**fields)


@dataclass(frozen=True)
class DecodedEntries:
    """ids (n, T, K) uint32, values (n, T, K) float32 and log_mass (n, T, J) float32, as in `CachedRows`."""

    ids: NDArray[np.uint32]
    values: NDArray[np.float32]
    log_mass: NDArray[np.float32]


def decode_rows(manifest: Manifest, stored: Stored, entries: DecodedEntries | None) -> CachedRows:
    """Rows with these entries, or with final hidden states where entries are None (exact mode)."""
    width, hidden = manifest.hidden_size, manifest.hidden
    final = None if entries else decode_states("exact/hidden", manifest.targets.exact_hidden, width, stored)
    return CachedRows(
        tokens=stored("tokens"),
        document_start=stored("document_start"),
        loss_mask=stored("loss_mask"),
        ids=entries.ids if entries else None,
        values=entries.values if entries else None,
        log_mass=entries.log_mass if entries else None,
        final_hidden=final,
        hidden_mean=decode_states("hidden/mean", hidden.mean, width, stored),
    )


def decode_entries(stored: Stored) -> DecodedEntries:
    """All stored entries."""
    values = torch.from_numpy(stored("logits/values")).float().numpy()
    return DecodedEntries(stored("logits/ids"), values, stored("logits/log_mass"))


def decode_states(name: str, precision: str, width: int, stored: Stored) -> NDArray[np.float32] | None:
    """Hidden states (n, positions, width) of the array `name`, None where their precision is `none`."""
    if precision == "none":
        return None
    kept = stored(name)
    if precision == "lossless":
        return widen_bfloat16(kept) if kept.dtype == np.uint16 else kept.astype(np.float32)
    codes = torch.from_numpy(kept)
    if precision == "int4":
        codes = unpack_int4(codes, width)
    states: NDArray[np.float32] = dequantize(codes, torch.from_numpy(stored(f"{name}_scales"))).numpy()
    return states
