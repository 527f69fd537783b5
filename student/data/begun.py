"""Batches begun on the device while the step before them is computed: the device need not wait for the host between."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

import torch

from student.data.batch import StepBatch


class BegunBatches:
    """The steps' batches, in order. A step calls its batch's `begin_next` when its own work is under way."""

    def __init__(self, batches: Iterator[StepBatch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._coming: StepBatch | None = None
        self.waited = 0.0
        """Seconds spent on waiting for batches that were not ready."""

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        self._begin_next()
        found, self._coming = self._coming, None
        if found is None:
            raise StopIteration
        return found

    def _begin_next(self) -> None:
        if self._coming is not None:
            return
        asked = time.perf_counter()
        batch = next(self._batches, None)
        self.waited += time.perf_counter() - asked
        if batch is not None:
            micro_batches = batch.on(self._device)
            begun = chain(list(islice(micro_batches, 1)), micro_batches)
            self._coming = replace(batch, begun=begun, begin_next=self._begin_next)
