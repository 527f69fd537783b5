"""The arrays of one shard while it is being filled, in the dtypes that are stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.format import Manifest, array_specs
from teacher_cache.quantize import pack_int4, quantize
from teacher_cache.randomness import Purpose, row_uniforms
from teacher_cache.rows import TokenRow
from teacher_cache.targets import KeptTargets


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
        return torch.from_numpy(self._uniforms(batch, Purpose.SAMPLING, self.manifest.seq_len))

    def put_targets(self, where: tuple[NDArray[np.int64], NDArray[np.int64]], kept: KeptTargets) -> None:
        """Targets of n positions, given by their rows and their places in them."""
        self.by_name["logits/ids"][where] = kept.ids.cpu().numpy()
        self.by_name["logits/values"][where] = kept.values.cpu().numpy()
        self.by_name["logits/log_mass"][where] = kept.log_mass.cpu().numpy()

    def put_hidden_mean(self, batch: slice, states: Tensor) -> None:
        """Averaged states (B, T, d) float32 of some rows, at the positions and the precision the manifest names."""
        hidden = self.manifest.hidden
        states = states[:, :: hidden.stride]
        uniform = None
        if hidden.mean in ("int8", "int4"):
            numbers = self._uniforms(batch, Purpose.ROUNDING, states[0].numel())
            uniform = torch.from_numpy(numbers).view(states.shape)
        self._put_states("hidden/mean", batch, states, hidden.mean, hidden.stride, uniform)

    def put_final(self, batch: slice, states: Tensor) -> None:
        """Final states (B, T, d) of some rows: exact mode."""
        self._put_states("exact/hidden", batch, states.float(), self.manifest.targets.exact_hidden, 1, None)

    def _put_states(
        self, name: str, batch: slice, states: Tensor, precision: str, stride: int, uniform: Tensor | None
    ) -> None:
        counted = torch.from_numpy(self.loss_mask[batch, ::stride])[..., None].to(states.device)
        states = torch.where(counted, states, 0.0)
        if precision == "lossless":
            self.by_name[name][batch] = stored_states(states, self.manifest.teacher.dtype)
            return
        codes, scales = quantize(
            states, "int4" if precision == "int4" else "int8", None if uniform is None else uniform.to(states.device)
        )
        self.by_name[name][batch] = (pack_int4(codes) if precision == "int4" else codes).cpu().numpy()
        self.by_name[f"{name}_scales"][batch] = scales.cpu().numpy()

    def _uniforms(self, batch: slice, purpose: Purpose, count: int) -> NDArray[np.float64]:
        seed = self.manifest.targets.seed
        return np.stack([row_uniforms(seed, row, purpose, count) for row in self.rows[batch]])


def stored_states(states: Tensor, dtype: str) -> NDArray[Any]:
    """States at the teacher's precision; bfloat16, which NumPy lacks, as its bit pattern."""
    rounded = states.to(getattr(torch, dtype)).cpu()
    if dtype == "bfloat16":
        return rounded.view(torch.int16).numpy().view(np.uint16)
    return rounded.numpy()
