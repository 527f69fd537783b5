"""The arrays of a shard while they are filled, in the dtypes in which they are stored."""

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
from teacher_cache.format.arrays import ROLES, row_specs
from teacher_cache.format.manifest import Manifest
from teacher_cache.targets.keep import KeptTargets
from teacher_cache.targets.quantize import pack, quantize, quantize_rows
from teacher_cache.targets.randomness import Purpose, rounding_keys, row_uniforms
from teacher_cache.targets.states import channel_sets, drawn_phases, drawn_sets, has_phases, kept_positions

STORED_AS = {"uint32": torch.int32, "float16": torch.float16, "float32": torch.float32}
"""PyTorch dtype with the same bits as the stored one."""


@dataclass(frozen=True)
class ShardArrays:
    """Arrays of the consecutive `rows` of a cache, by their names in docs/format.md."""

    manifest: Manifest
    rows: range
    by_name: dict[str, NDArray[Any]]

    @classmethod
    def empty(cls, manifest: Manifest, rows: range) -> Self:
        """Arrays of zeros; masked positions stay zero."""
        specs = row_specs(manifest)
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

    @property
    def text_positions(self) -> int:
        """How many positions have a label that is no padding."""
        role = self.by_name.get("role")
        return int(self.loss_mask.sum() if role is None else (role != ROLES.index("padding")).sum())

    def put_rows(self, rows: Iterable[TokenRow]) -> None:
        """Fill in the tokens, document starts and loss masks of all rows, and of conversations the roles."""
        for index, row in enumerate(rows):
            self.tokens[index] = row.tokens
            self.document_start[index] = row.document_start
            self.loss_mask[index] = row.loss_mask
            if row.role is not None:
                self.by_name["role"][index] = row.role

    def sampling_offsets(self, batch: slice) -> Tensor:
        """Uniform offsets (B, T) float64, one per position, of the systematic samples of the batch's rows."""
        seed, length = self.manifest.targets.seed, self.manifest.seq_len
        uniforms = [row_uniforms(seed, row, Purpose.SAMPLING, length) for row in self.rows[batch]]
        return torch.from_numpy(np.stack(uniforms))

    def stored_targets(self, batch: slice, places: Tensor, kept: KeptTargets) -> dict[str, Tensor]:
        """Targets as they are stored, by array; zero except at `places` (n,), indices into the flattened (B, T)."""
        shape = self.loss_mask[batch].shape
        stored = {}
        for name, part in (("ids", kept.ids), ("values", kept.values), ("log_mass", kept.log_mass)):
            dtype = STORED_AS[self.by_name[f"logits/{name}"].dtype.name]
            whole = part.new_zeros((shape[0] * shape[1], part.shape[1]), dtype=dtype)
            stored[f"logits/{name}"] = whole.index_copy_(0, places, part.to(dtype)).view(*shape, -1)
        return stored

    def stored_hidden_mean(self, batch: slice, states: Tensor) -> dict[str, Tensor]:
        """Averaged states (B, T, d) float32 as they are stored: the kept positions and channels, in their precision."""
        hidden, name = self.manifest.hidden, "hidden/mean"
        states, counted = self._kept(states, self._counted(batch, states.device), self.rows[batch])
        if hidden.mean == "none" or hidden.mean == "lossless":
            return {name: self._lossless(states, counted)}
        keys = rounding_keys(self.manifest.targets.seed, self.rows[batch], states.device)
        codes, scales = quantize_rows(states, counted, hidden.mean, keys)
        return {name: pack(codes, hidden.mean), f"{name}_scales": scales}

    def _kept(self, states: Tensor, counted: Tensor, rows: range) -> tuple[Tensor, Tensor]:
        """States (B, P, k) and the mask (B, P) of the positions and channels that are kept of (B, T, d) and (B, T)."""
        hidden = self.manifest.hidden
        if has_phases(self.manifest):
            kept = torch.from_numpy(kept_positions(hidden, states.shape[1], drawn_phases(self.manifest, rows)))
            within, kept = kept < states.shape[1], kept.clamp(max=states.shape[1] - 1)
            places = to_device(kept, states.device)
            states = states.take_along_dim(places[..., None], dim=1)
            counted = counted.take_along_dim(places, dim=1) & to_device(within, states.device)
        else:
            states, counted = states[:, :: hidden.stride], counted[:, :: hidden.stride]
        if hidden.channels is None:
            return states, counted
        sets = channel_sets(hidden.channels)
        channels = to_device(torch.from_numpy(sets.members[drawn_sets(self.manifest, rows)]), states.device)
        states = states.take_along_dim(channels, dim=-1)
        if hidden.mean != "lossless":
            states = states / to_device(torch.from_numpy(sets.sizes), states.device)[channels]
        return states, counted

    def stored_final(self, batch: slice, states: Tensor) -> dict[str, Tensor]:
        """Final states (B, T, d) as exact mode stores them."""
        counted, name = self._counted(batch, states.device), "exact/hidden"
        if self.manifest.targets.exact_hidden == "lossless":
            return {name: self._lossless(states, counted)}
        codes, scales = quantize(torch.where(counted[..., None], states.float(), 0.0), "int8", None)
        return {name: codes, f"{name}_scales": scales}

    def put(self, batch: slice, stored: Mapping[str, Tensor]) -> None:
        """Put the batch's part of each array, on the CPU, in its place; only the bits of a dtype count.

        Raises `UserError` naming row and position if a number is not finite.
        """
        for name, part in stored.items():
            array = self.by_name[name]
            array[batch] = part.numpy().view(array.dtype)
            require_finite(self.manifest, name, array[batch], self.rows[batch])

    def _counted(self, batch: slice, device: torch.device) -> Tensor:
        """The loss mask (B, T) of the batch, on the device."""
        return to_device(torch.from_numpy(self.loss_mask[batch]), device)

    def _lossless(self, states: Tensor, counted: Tensor) -> Tensor:
        """States in the teacher's dtype, bfloat16 as int16 with the same bits; zero at masked positions."""
        stored = torch.where(counted[..., None], states, 0.0).to(getattr(torch, self.manifest.teacher.dtype))
        return stored.view(torch.int16) if stored.dtype == torch.bfloat16 else stored
