"""The second batch of a shape is recorded, later ones are replayed; what cannot be recorded runs as it is.

What a pass says of its rows holds for it alone, whatever other threads run.

With a GPU's graphs replaced by ones that call again: tests/gpu has the real ones.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from teacher_cache.teacher.cuda_graphs import Captured, rows_not_packed


class Graph:
    """Notes its replays."""

    made: list["Graph"] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.replays = 0
        Graph.made.append(self)

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture(autouse=True)
def _graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def record(graph: Any, **_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "graph", record)
    Graph.made.clear()


def test_a_shape_is_recorded_the_second_time_and_replayed_with_new_inputs() -> None:
    calls: list[Tensor] = []

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        calls.append(inputs)
        return (inputs.view(-1),)

    captured = Captured(run)
    captured(torch.zeros(2, 3))
    assert not Graph.made
    captured(torch.zeros(4, 3))
    assert not Graph.made, "another shape"
    for value in (1.0, 2.0):
        (found,) = captured(torch.full((2, 3), value))
        assert torch.equal(found, torch.full((6,), value))
    (graph,) = Graph.made
    assert graph.replays == 2
    assert len(calls) == 3, "first sights of two shapes, and one recording"


def test_outputs_are_not_overwritten_by_the_next_replay() -> None:
    captured = Captured(lambda inputs: (inputs.view(-1),))
    captured(torch.zeros(3))
    first, second = captured(torch.full((3,), 1.0))[0], captured(torch.full((3,), 2.0))[0]
    assert (first.tolist(), second.tolist()) == ([1.0] * 3, [2.0] * 3)


def test_the_recording_is_of_the_device_that_the_inputs_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = []

    @contextmanager
    def record(graph: Any, *, stream: Any, **_: Any) -> Iterator[None]:
        streams.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "graph", record)
    captured = Captured(lambda inputs: (inputs.view(-1),))
    for _ in range(2):
        captured(torch.zeros(3, device="meta"))
    assert streams == ["a stream of meta"]


def test_what_cannot_be_recorded_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def refuse(graph: Any, **_: Any) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    captured = Captured(lambda inputs: (inputs + 1,))
    assert [float(captured(torch.full((1,), value))[0]) for value in (1.0, 2.0, 3.0)] == [2.0, 3.0, 4.0]
    assert len(Graph.made) == 1, "tried once"
    said = "cannot be recorded (operation not permitted when stream is capturing), and run as they are"
    assert capsys.readouterr().err == f"note: the teacher's passes {said}\n"


def packed_rows_are_seen() -> bool:
    return masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]])) is not None


def test_passes_of_two_threads_may_end_in_any_order() -> None:
    first, second = rows_not_packed(), rows_not_packed()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        assert not one.submit(packed_rows_are_seen).result()
        assert other.submit(packed_rows_are_seen).result(), "its rows are packed, whatever the first thread runs"
        other.submit(second.__enter__).result()
        assert not other.submit(packed_rows_are_seen).result()
        one.submit(first.__exit__, None, None, None).result()
        assert one.submit(packed_rows_are_seen).result()
        other.submit(second.__exit__, None, None, None).result()
        assert other.submit(packed_rows_are_seen).result()
    assert packed_rows_are_seen()
