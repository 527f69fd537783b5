"""The arrays of one shard while it is being filled, in the dtypes that are stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.build.finite import require_finite
from teacher_cache.corpus.rows import TokenRow
from teacher_cache.device import to_device
from teacher_cache.format.arrays import array_specs
from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.keep import KeptTargets
from teacher_cache.targets.quantize import pack_int4, quantize, quantize_rows
from teacher_cache.targets.randomness import Purpose, rounding_keys, row_uniforms

STORED_AS = {"uint32": torch.int32, "float16": torch.float16, "float32": torch.float32}
"""PyTorch's dtype of the same bits."""


@dataclass(frozen=True)
class ShardArrays:
    """Arrays of consecutive rows by their names in docs/format.md; `rows` are their numbers in the cache."""

    manifest: Manifest
    rows: range
    by_name: dict[str, NDArray[Any]]

    @classmethod
    def empty(cls, manifest: Manifest, rows: range) -> Self:
        """All zeros, which is also what masked positions keep."""
        specs = array_specs(manifest)
        return cls(manifest, rows, {spec.name: np.zeros((len(rows), *spec.row_shape), spec.dtype) for spec in specs})

    @property
    def tokens(self) -> NDArray[np.uint32]:
        return self.by_name["tokens"]

    @property
    def document_start(self) -> NDArray[np.bool_]:
        return self.by_name["document_start"]

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        return self.by_name["loss_mask"]

    def put_rows(self, rows: Iterable[TokenRow]) -> None:
        """All rows' tokens and masks."""
        for index, row in enumerate(rows):
            self.tokens[index] = row.tokens
            self.document_start[index] = row.document_start
            self.loss_mask[index] = row.loss_mask

    def sampling_offsets(self, batch: slice) -> Tensor:
        """Uniform offsets (B, T) float64 of the systematic samples of some rows."""
        seed, length = self.manifest.targets.seed, self.manifest.seq_len
        uniforms = [row_uniforms(seed, row, Purpose.SAMPLING, length) for row in self.rows[batch]]
        return torch.from_numpy(np.stack(uniforms))

    def stored_targets(self, batch: slice, places: Tensor, kept: KeptTargets) -> dict[str, Tensor]:
        """Targets of n positions of some rows, places (n,) counting through the rows; the others are zeros."""
        shape = self.loss_mask[batch].shape
        stored = {}
        for name, part in (("ids", kept.ids), ("values", kept.values), ("log_mass", kept.log_mass)):
            dtype = STORED_AS[self.by_name[f"logits/{name}"].dtype.name]
            whole = part.new_zeros((shape[0] * shape[1], part.shape[1]), dtype=dtype)
            stored[f"logits/{name}"] = whole.index_copy_(0, places, part.to(dtype)).view(*shape, -1)
        return stored

    def stored_hidden_mean(self, batch: slice, states: Tensor) -> dict[str, Tensor]:
        """Averaged states (B, T, d) float32 of some rows, at the positions and the precision the manifest names."""
        hidden, name = self.manifest.hidden, "hidden/mean"
        states, counted = states[:, :: hidden.stride], self._counted(batch, states.device)[:, :: hidden.stride]
        if hidden.mean not in ("int8", "int4"):
            return {name: self._lossless(states, counted)}
        keys = rounding_keys(self.manifest.targets.seed, self.rows[batch], states.device)
        codes, scales = quantize_rows(states, counted, hidden.mean, keys)
        return {name: pack_int4(codes) if hidden.mean == "int4" else codes, f"{name}_scales": scales}

    def stored_final(self, batch: slice, states: Tensor) -> dict[str, Tensor]:
        """Final states (B, T, d) of some rows: exact mode."""
        counted, name = self._counted(batch, states.device), "exact/hidden"
        if self.manifest.targets.exact_hidden == "lossless":
            return {name: self._lossless(states, counted)}
        codes, scales = quantize(torch.where(counted[..., None], states.float(), 0.0), "int8", None)
        return {name: codes, f"{name}_scales": scales}

    def put(self, batch: slice, stored: Mapping[str, Tensor]) -> None:
        """Arrays of some rows by name, on the CPU; integers of another sign as their bits.

        Raises `UserError` naming the row and the position where a number is not finite.
        """
        for name, part in stored.items():
            array = self.by_name[name]
            array[batch] = part.numpy().view(array.dtype)
            require_finite(self.manifest, name, array[batch], self.rows[batch])

    def _counted(self, batch: slice, device: torch.device) -> Tensor:
        """The loss mask (B, T) of some rows."""
        return to_device(torch.from_numpy(self.loss_mask[batch]), device)

    def _lossless(self, states: Tensor, counted: Tensor) -> Tensor:
        """States in the teacher's dtype, bfloat16 as its bits; 0 where nothing counts."""
        stored = torch.where(counted[..., None], states, 0.0).to(getattr(torch, self.manifest.teacher.dtype))
        return stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored
