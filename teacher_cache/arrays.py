"""The arrays of one shard while it is being filled, in the dtypes that are stored."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.codec import round_log_mass
from teacher_cache.format import Manifest, array_specs
from teacher_cache.rows import TokenRow
from teacher_cache.targets import KeptTargets


@dataclass(frozen=True)
class ShardArrays:
    """Arrays of n rows by their names in docs/format.md, and the labels' logits for the statistics."""

    manifest: Manifest
    by_name: dict[str, NDArray[Any]]
    label_logits: NDArray[np.float32]

    @classmethod
    def empty(cls, manifest: Manifest, rows: int) -> Self:
        """All zeros, which is also what masked positions keep."""
        by_name = {spec.name: np.zeros((rows, *spec.row_shape), spec.dtype) for spec in array_specs(manifest)}
        return cls(manifest, by_name, np.zeros((rows, manifest.seq_len), np.float32))

    @property
    def tokens(self) -> NDArray[np.uint32]:
        return self.by_name["tokens"]

    @property
    def document_start(self) -> NDArray[np.bool_]:
        return self.by_name["document_start"]

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        return self.by_name["loss_mask"]

    def put_row(self, index: int, row: TokenRow) -> None:
        """A row's tokens and masks."""
        self.tokens[index] = row.tokens
        self.document_start[index] = row.document_start
        self.loss_mask[index] = row.loss_mask

    def put(self, where: Any, kept: KeptTargets, hidden_mean: Tensor | None) -> None:
        """Targets of the n positions that `where` selects from (rows, T); hidden_mean (n, d) float32 or None."""
        self.by_name["logits/ids"][where] = kept.ids.cpu().numpy()
        self.by_name["logits/values"][where] = kept.values.float().cpu().numpy()
        self.by_name["logits/log_mass"][where] = round_log_mass(kept.log_mass.cpu().numpy())
        self.label_logits[where] = kept.label_logits.cpu().numpy()
        if hidden_mean is not None and "hidden/mean" in self.by_name:
            self.by_name["hidden/mean"][where] = _stored_hidden(hidden_mean, self.manifest.teacher.dtype)

    def stored(self) -> dict[str, NDArray[Any]]:
        """The arrays to encode, by name."""
        return self.by_name


def _stored_hidden(hidden: Tensor, dtype: str) -> NDArray[Any]:
    """States at the teacher's precision; bfloat16, which NumPy lacks, as its bit pattern."""
    rounded = hidden.to(getattr(torch, dtype)).cpu()
    if dtype == "bfloat16":
        return rounded.view(torch.int16).numpy().view(np.uint16)
    return rounded.numpy()
