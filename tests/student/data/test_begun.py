"""Batches begun while the step before them is computed."""

from collections.abc import Iterator

import pytest
import torch

from student.data.batch import MicroBatch, StepBatch
from student.data.begun import BegunBatches

CPU = torch.device("cpu")


class _Batches:
    """Three batches of two micro-batches each, and what has been asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []

        def on(batch: StepBatch, _: torch.device) -> Iterator[MicroBatch]:
            if batch.begun is not None:
                yield from batch.begun
                return
            for part in "ab":
                self.asked.append(f"{len(batch.counted)}{part}")
                yield MicroBatch(())

        monkeypatch.setattr(StepBatch, "on", on)

    def __iter__(self) -> Iterator[StepBatch]:
        for number in range(3):
            self.asked.append(f"batch {number}")
            yield StepBatch((), (None,) * number)  # type: ignore[arg-type]


def test_the_next_batch_is_begun_when_the_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Batches(monkeypatch)
    batches = BegunBatches(iter(made), CPU)
    first = next(batches)
    assert made.asked == ["batch 0", "0a"]
    assert len(list(first.on(CPU))) == 2
    assert made.asked == ["batch 0", "0a", "0b"]
    first.begin_next()
    first.begin_next()
    assert made.asked[3:] == ["batch 1", "1a"]
    second = next(batches)
    assert len(second.counted) == 1
    assert made.asked[3:] == ["batch 1", "1a"]


def test_all_batches_come_in_order_whether_or_not_they_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Batches(monkeypatch)
    found = []
    for batch in BegunBatches(iter(made), CPU):
        found.append(len(batch.counted))
        assert len(list(batch.on(CPU))) == 2
        batch.begin_next()
    assert found == [0, 1, 2]
    assert made.asked == [word for n in range(3) for word in (f"batch {n}", f"{n}a", f"{n}b")]
