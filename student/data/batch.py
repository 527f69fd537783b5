"""Rows of a cache as tensors: what a step or an evaluation gives the student and its loss."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from teacher_cache.format.manifest import Manifest, TargetLayout
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows, as_tensor, decode_averaged, decode_states, of_sets
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
    cache: int = 0
    """Which of the caches trained on the rows are from."""
    known_positions: Tensor | None = None
    """`valid_positions`, where the host has found them already."""

    @classmethod
    def of(cls, rows: CachedRows, cache: Cache, device: torch.device) -> "Batch":
        """Rows of a cache as tensors; position t's label is tokens[t + 1]."""
        return StoredBatch.of(rows, cache).map(lambda tensor: tensor.to(device)).widened()

    @cached_property
    def valid_positions(self) -> Tensor:
        """Indices (n,) int64 of the valid positions in the flattened batch, in order."""
        if self.known_positions is not None:
            return self.known_positions
        return valid_positions(self.loss_mask)


@dataclass(frozen=True)
class StoredBatch:
    """B rows as tensors of the types they are stored in, a third of what a `Batch` takes: widened on its device."""

    tensors: Mapping[str, Tensor]
    """By the arrays' names in docs/format.md."""
    manifest: Manifest
    layout: TargetLayout
    """What the entries are, see `Cache.layout`."""
    cache: int = 0
    """Which of the caches trained on the rows are from."""
    positions: Tensor | None = None
    """Indices (n,) int64 of the valid positions: found on the host, which would wait for a GPU to say how many."""

    @classmethod
    def of(cls, rows: CachedRows, cache: Cache, number: int = 0) -> "StoredBatch":
        """The rows' own memory, not a copy; `number` is the cache's among those trained on."""
        tensors = {name: as_tensor(array) for name, array in rows.arrays.items()}
        return cls(tensors, cache.manifest, cache.layout, number, valid_positions(tensors["loss_mask"]))

    def map(self, change: Callable[[Tensor], Tensor]) -> "StoredBatch":
        """The batch with every tensor changed."""
        tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, positions=None if self.positions is None else change(self.positions))

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
            cache=self.cache,
            known_positions=self.positions,
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
        known, drawn = channel_sets(hidden.channels), self.tensors[SETS]
        channels, weights = of_sets(known.members, drawn), of_sets(known.weights[known.members], drawn)
        return AveragedStates(values, positions, channels, weights, variance)

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
class MicroBatch:
    """Rows that go through the student together: those of each cache a batch by itself, for their targets differ."""

    parts: tuple[Batch, ...]

    @cached_property
    def inputs(self) -> Tensor:
        """Tokens (B, T) int64 of all parts."""
        return _joined([part.inputs for part in self.parts])

    @cached_property
    def document_start(self) -> Tensor | None:
        """(B, T) bool of all parts where the student keeps documents apart, else None."""
        starts = [part.document_start for part in self.parts if part.document_start is not None]
        return _joined(starts) if starts else None

    @property
    def loss_mask(self) -> Tensor:
        """(B, T) bool of all parts."""
        return _joined([part.loss_mask for part in self.parts])

    def with_states(self, hidden_states: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Each part, and what of the hidden states (B, T, d) is its own."""
        if len(self.parts) == 1:
            yield self.parts[0], hidden_states
        else:
            sizes = [len(part.inputs) for part in self.parts]
            yield from zip(self.parts, torch.split(hidden_states, sizes), strict=True)


@dataclass(frozen=True)
class Counted:
    """What one process's rows of one cache count in a step."""

    tokens: int = 0
    """Valid positions."""
    sequences: int = 0
    """Rows that have a valid position with averaged hidden states."""

    @classmethod
    def of(cls, rows: CachedRows) -> "Counted":
        """Without averaged hidden states all rows with a valid position are counted."""
        sequences = rows.loss_mask if rows.hidden_positions is None else rows.hidden_counted
        return cls(int(rows.loss_mask.sum()), int(sequences.any(axis=1).sum()))


@dataclass(frozen=True)
class StepBatch:
    """One process's rows of a global batch: micro-batches in host memory as stored, and this process's counts."""

    micro_batches: tuple[tuple[StoredBatch, ...], ...]
    """Each of the parts that its caches have in it."""
    counted: tuple[Counted, ...]
    """By cache."""
    begun: Iterator[MicroBatch] | None = None
    """What `on` gives, where it has been asked for already."""
    begin_next: Callable[[], None] = lambda: None
    """To be called when the step's own work is under way, see `BegunBatches`."""

    @classmethod
    def of(
        cls, parts: Sequence[CachedRows | None], size: int, caches: Sequence[Cache], *, pinned: bool = False
    ) -> "StepBatch":
        """Rows of each cache, one cache behind the other, cut into micro-batches of `size`.

        From pinned memory a CUDA device copies while the host goes on.
        """
        counted = tuple(Counted() if rows is None else Counted.of(rows) for rows in parts)
        rows_of = [0 if rows is None else len(rows.tokens) for rows in parts]
        starts = [sum(rows_of[:number]) for number in range(len(parts))]
        micro_batches = []
        for first in range(0, sum(rows_of), size):
            cut: list[StoredBatch] = []
            for number, (rows, start) in enumerate(zip(parts, starts, strict=True)):
                within = slice(max(first - start, 0), max(first + size - start, 0))
                if rows is not None and within.start < min(within.stop, rows_of[number]):
                    cut.append(StoredBatch.of(rows.select(within), caches[number], number))
            micro_batches.append(tuple(part.map(Tensor.pin_memory) if pinned else part for part in cut))
        return cls(tuple(micro_batches), counted)

    def on(self, device: torch.device) -> Iterator[MicroBatch]:
        """The micro-batches on a device, widened there; on CUDA each is copied while the one before it is used."""
        if self.begun is not None:
            yield from self.begun
            return
        if device.type != "cuda":
            for parts in self.micro_batches:
                yield _widened([part.map(lambda tensor: tensor.to(device)) for part in parts])
            return
        copying: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(device)
        copies = (_start_copy(parts, device, copying) for parts in self.micro_batches)
        coming = next(copies, None)
        while coming is not None:
            (copied, arrived), coming = coming, next(copies, None)
            computing.wait_event(arrived)
            yield _widened(copied)


def _widened(parts: Iterable[StoredBatch]) -> MicroBatch:
    return MicroBatch(tuple(part.widened() for part in parts))


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Rows behind one another; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _start_copy(
    parts: Sequence[StoredBatch], device: torch.device, copying: torch.cuda.Stream
) -> tuple[list[StoredBatch], torch.cuda.Event]:
    computing = torch.cuda.current_stream(device)

    def copied(tensor: Tensor) -> Tensor:
        on_device = tensor.to(device, non_blocking=True)
        on_device.record_stream(computing)  # its memory is not the copying stream's to reuse before that is done
        return on_device

    with torch.cuda.stream(copying):
        return [part.map(copied) for part in parts], copying.record_event()
