"""Rows of a cache as tensors: what a step or an evaluation gives the student and its loss."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from teacher_cache.format.manifest import Manifest, TargetLayout
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows, as_tensor, decode_averaged, decode_states
from teacher_cache.targets.states import PHASES, SETS, channel_sets


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's distribution of each next token: kept entries and log-mass, or in exact mode its final states."""

    ids: Tensor | None
    """(B, T, K) int64, the top_k largest logits first, then the sampled ones."""
    values: Tensor | None
    """(B, T, K) raw logits; -inf marks an unused place."""
    log_mass: Tensor | None
    """(B, T, J) log-mass outside the top_k, relative to the largest logit, at J node temperatures."""
    final_hidden: Tensor | None
    """(B, T, d) the teacher's state after its final norm, in exact mode."""
    layout: TargetLayout
    """What the entries are, see `Cache.layout`."""


@dataclass(frozen=True)
class AveragedStates:
    """The teacher's hidden states averaged over its layers, where the cache has them."""

    values: Tensor
    """(B, P, d), or (B, P, k) where only some channels of each position are cached."""
    positions: Tensor
    """(B, P) int64: which position of the row each is; T and above mark an unused place."""
    channels: Tensor | None = None
    """(B, P, k) int64: which channels the values are; None for all of them, in order."""
    weights: Tensor | None = None
    """(B, P, k): one over the probability that the channel was drawn."""
    variance: Tensor | None = None
    """(B, P, k): of the error that rounding has left in the values, by which squared differences are too large."""

    def counted(self, loss_mask: Tensor) -> Tensor:
        """(B, P) bool: where a valid position of the mask (B, T) is, and not an unused place."""
        length = loss_mask.shape[1]
        return loss_mask.gather(1, self.positions.clamp(max=length - 1)) & (self.positions < length)

    @classmethod
    def everywhere(cls, values: Tensor) -> "AveragedStates":
        """States (B, T, d) of every position."""
        return cls(values, torch.arange(values.shape[1], device=values.device).expand(values.shape[:2]))


@dataclass(frozen=True)
class Batch:
    """B rows of T positions."""

    inputs: Tensor
    """Tokens (B, T) int64."""
    document_start: Tensor | None
    """(B, T) bool where the teacher saw each document by itself: the student forgets what came before. Else None."""
    labels: Tensor
    """Next tokens (B, T) int64."""
    loss_mask: Tensor
    """(B, T) bool, true at valid positions: those that count in the loss."""
    targets: TeacherTargets
    averaged: AveragedStates | None
    """None where the cache has no averaged hidden states."""

    @classmethod
    def of(cls, rows: CachedRows, cache: Cache, device: torch.device) -> "Batch":
        """Rows of a cache as tensors; position t's label is tokens[t + 1]."""
        return StoredBatch.of(rows, cache).map(lambda tensor: tensor.to(device)).widened()

    @cached_property
    def valid_positions(self) -> Tensor:
        """Indices (n,) int64 of the valid positions in the flattened batch, in order; on a GPU the host waits once."""
        return valid_positions(self.loss_mask)


@dataclass(frozen=True)
class StoredBatch:
    """B rows as tensors of the types they are stored in, a third of what a `Batch` takes: widened on its device."""

    tensors: Mapping[str, Tensor]
    """By the arrays' names in docs/format.md."""
    manifest: Manifest
    layout: TargetLayout
    """What the entries are, see `Cache.layout`."""

    @classmethod
    def of(cls, rows: CachedRows, cache: Cache) -> "StoredBatch":
        """The rows' own memory, not a copy."""
        tensors = {name: as_tensor(array) for name, array in rows.arrays.items()}
        return cls(tensors, cache.manifest, cache.layout)

    def map(self, change: Callable[[Tensor], Tensor]) -> "StoredBatch":
        """The batch with every tensor changed."""
        return replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})

    def widened(self) -> Batch:
        """The batch as a step needs it, on the device it is on; position t's label is tokens[t + 1]."""
        stored = self.tensors
        tokens = stored["tokens"].long()
        apart = self.manifest.rows.context == "document"
        return Batch(
            inputs=tokens[:, :-1].contiguous(),
            document_start=stored["document_start"] if apart else None,
            labels=tokens[:, 1:].contiguous(),
            loss_mask=stored["loss_mask"],
            targets=TeacherTargets(
                ids=stored["logits/ids"].long() if "logits/ids" in stored else None,
                values=stored["logits/values"].float() if "logits/values" in stored else None,
                log_mass=stored.get("logits/log_mass"),
                final_hidden=self._states("exact/hidden"),
                layout=self.layout,
            ),
            averaged=self._averaged(),
        )

    def _averaged(self) -> AveragedStates | None:
        if "hidden/mean" not in self.tensors:
            return None
        values, variance = decode_averaged(self.manifest, self.tensors.get)
        hidden, device = self.manifest.hidden, values.device
        places = hidden.stride * torch.arange(values.shape[1], device=device)
        positions = places.expand(values.shape[:2]) + self.tensors.get(PHASES, places.new_zeros(1))[:, None]
        if hidden.channels is None:
            return AveragedStates(values, positions, variance=variance)
        sets = channel_sets(hidden.channels)
        drawn = self.tensors[SETS].long()
        members, weights = torch.from_numpy(sets.members).to(device), torch.from_numpy(sets.weights).to(device)
        return AveragedStates(values, positions, members[drawn], weights[members][drawn], variance)

    def _states(self, name: str) -> Tensor | None:
        return decode_states(name, self.manifest, self.tensors.get) if name in self.tensors else None


def valid_positions(loss_mask: Tensor) -> Tensor:
    """Indices (n,) int64 of the true entries of a mask (B, T), flattened."""
    return loss_mask.flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class GlobalCounts:
    """What the sums of the loss are divided by: counts over all processes and micro-batches of a step."""

    tokens: float
    """Valid positions."""
    sequences: float
    """Rows that have a valid position with averaged hidden states."""


@dataclass(frozen=True)
class StepBatch:
    """One process's rows of a global batch: micro-batches in host memory as stored, and this process's counts."""

    micro_batches: tuple[StoredBatch, ...]
    tokens: int
    """Valid positions."""
    sequences: int
    """Rows that have a valid position with averaged hidden states."""

    @classmethod
    def of(cls, rows: CachedRows, size: int, cache: Cache, *, pinned: bool = False) -> "StepBatch":
        """Rows cut into micro-batches of `size`; from pinned memory a CUDA device copies while the host goes on."""
        cut = [rows.select(slice(first, first + size)) for first in range(0, len(rows.tokens), size)]
        batches = (StoredBatch.of(part, cache) for part in cut)
        sequences = rows.loss_mask if rows.hidden_positions is None else rows.hidden_counted
        return cls(
            tuple(batch.map(Tensor.pin_memory) if pinned else batch for batch in batches),
            tokens=int(rows.loss_mask.sum()),
            sequences=int(sequences.any(axis=1).sum()),
        )

    def on(self, device: torch.device) -> Iterator[Batch]:
        """The micro-batches on a device, widened there; on CUDA each is copied while the one before it is used."""
        if device.type != "cuda":
            yield from (batch.map(lambda tensor: tensor.to(device)).widened() for batch in self.micro_batches)
            return
        copying: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(device)
        copies = (_start_copy(batch, device, copying) for batch in self.micro_batches)
        coming = next(copies, None)
        while coming is not None:
            (batch, arrived), coming = coming, next(copies, None)
            computing.wait_event(arrived)
            yield batch.widened()


def _start_copy(
    batch: StoredBatch, device: torch.device, copying: torch.cuda.Stream
) -> tuple[StoredBatch, torch.cuda.Event]:
    computing = torch.cuda.current_stream(device)

    def copied(tensor: Tensor) -> Tensor:
        on_device = tensor.to(device, non_blocking=True)
        on_device.record_stream(computing)  # its memory is not the copying stream's to reuse before that is done
        return on_device

    with torch.cuda.stream(copying):
        return batch.map(copied), copying.record_event()
