"""The arrays of one shard while it is being filled, in the dtypes that are stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.format import Manifest, array_specs
from teacher_cache.quantize import pack_int4, quantize
from teacher_cache.randomness import Purpose, rounding_uniforms, row_uniforms
from teacher_cache.rows import TokenRow
from teacher_cache.targets import KeptTargets
from teacher_cache.transfers import to_device

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
        hidden = self.manifest.hidden
        states = states[:, :: hidden.stride]
        uniform = None
        if hidden.mean in ("int8", "int4"):
            rows, seed = self.rows[batch], self.manifest.targets.seed
            uniform = rounding_uniforms(seed, rows, states[0].numel(), states.device).view(states.shape)
        return self._stored_states("hidden/mean", batch, states, hidden.mean, hidden.stride, uniform)

    def stored_final(self, batch: slice, states: Tensor) -> dict[str, Tensor]:
        """Final states (B, T, d) of some rows: exact mode."""
        precision = self.manifest.targets.exact_hidden
        return self._stored_states("exact/hidden", batch, states.float(), precision, 1, None)

    def put(self, batch: slice, stored: Mapping[str, Tensor]) -> None:
        """Arrays of some rows by name, on the CPU; integers of another sign as their bits."""
        for name, part in stored.items():
            array = self.by_name[name]
            array[batch] = part.numpy().view(array.dtype)

    def _stored_states(
        self, name: str, batch: slice, states: Tensor, precision: str, stride: int, uniform: Tensor | None
    ) -> dict[str, Tensor]:
        counted = to_device(torch.from_numpy(self.loss_mask[batch, ::stride])[..., None], states.device)
        states = torch.where(counted, states, 0.0)
        if precision == "lossless":
            stored = states.to(getattr(torch, self.manifest.teacher.dtype))
            return {name: stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored}
        codes, scales = quantize(states, "int4" if precision == "int4" else "int8", uniform)
        return {name: pack_int4(codes) if precision == "int4" else codes, f"{name}_scales": scales}
