"""A batch of a cache's rows with the teacher's targets, as a DataLoader gives it to a training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from student.data.batch import Batch, StoredBatch, valid_positions
from student.model.causal_lm.head import places_in_documents
from teacher_cache.format.manifest import Manifest, TargetLayout

IGNORED = -100
"""The label of a position that does not count, which torch's cross-entropy ignores."""


@dataclass(frozen=True)
class CachedRow:
    """One row of a cache; `CacheDataset` gives these, `collate` puts them together."""

    tensors: dict[str, Tensor]
    """As stored, by the arrays' names in docs/format.md."""
    manifest: Manifest
    layout: TargetLayout

    def __getitem__(self, name: str) -> Tensor:
        """`input_ids`, `labels`, `loss_mask`, `position_ids`, all (T,); or an array's name, such as `logits/ids`."""
        return self.tensors[name] if name in self.tensors else self._model_inputs[name]

    def keys(self) -> list[str]:
        """Names of all that a row has."""
        return [*self._model_inputs, *self.tensors]

    @cached_property
    def _model_inputs(self) -> dict[str, Tensor]:
        """Of the one row."""
        batch = collate([self])
        found = {**batch.model_inputs, "labels": batch.labels}
        return {name: tensor[0] for name, tensor in found.items()}


@dataclass(frozen=True)
class CachedBatch:
    """B rows of T positions, with tensors of the types they are stored in; they are widened on their device."""

    stored: StoredBatch

    @property
    def input_ids(self) -> Tensor:
        """Tokens (B, T) int64."""
        return self.widened.inputs

    @cached_property
    def labels(self) -> Tensor:
        """The token after each (B, T) int64, -100 where it does not count.

        They are shifted already: transformers' models would shift them once more, so do not give them to one.
        """
        return self.widened.labels.masked_fill(~self.loss_mask, IGNORED)

    @property
    def loss_mask(self) -> Tensor:
        """(B, T) bool, true at the positions that count."""
        return self.stored.tensors["loss_mask"]

    @property
    def document_start(self) -> Tensor | None:
        """(B, T) bool where the teacher saw each document of a row by itself, as the student should; else None."""
        return self.widened.document_start

    @cached_property
    def position_ids(self) -> Tensor | None:
        """(B, T) int64, each position's number in its document, where the teacher saw each by itself; else None."""
        return None if self.document_start is None else places_in_documents(self.document_start)

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """What a model of transformers reads: `input_ids`, and `position_ids` where documents are kept apart."""
        positions = self.position_ids
        return {"input_ids": self.input_ids} | ({} if positions is None else {"position_ids": positions})

    @cached_property
    def widened(self) -> Batch:
        """The batch as `student-train` has it."""
        return self.stored.widened()

    @property
    def device(self) -> torch.device:
        return self.loss_mask.device

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "CachedBatch":
        """The batch on a device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CachedBatch":
        """The batch in pinned memory, which a DataLoader with `pin_memory=True` asks for."""
        return self._changed(Tensor.pin_memory)

    def row(self, number: int) -> "CachedBatch":
        """One row, as a batch."""
        whole = replace(self.stored, positions=None)
        return CachedBatch(whole.map(lambda tensor: tensor[number : number + 1]))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "CachedBatch":
        return CachedBatch(self.stored.map(change))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.loss_mask)


def collate(rows: Sequence[CachedRow]) -> CachedBatch:
    """The `collate_fn` of a DataLoader: rows of a `CacheDataset` as one batch."""
    names = rows[0].tensors
    tensors = {name: torch.stack([row.tensors[name] for row in rows]) for name in names}
    positions = valid_positions(tensors["loss_mask"])
    return CachedBatch(StoredBatch(tensors, rows[0].manifest, rows[0].layout, positions=positions))
