"""What is replayed and what runs as ever; graphs themselves need a GPU, see tests/gpu/test_recurrence_gpu.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from student.model.recorded import record_passes


class _Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(3)), 0

    def forward(self, tokens: Tensor, document_start: Tensor | None = None, *, transfer: bool = False) -> Tensor:
        self.calls += 1
        return tokens * self.weight * (3 if transfer else 2) + (0 if document_start is None else document_start)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """The examples of what was recorded; a replay says that it is one by adding 100."""
    made: list[tuple[Tensor, ...]] = []

    def record(run: Callable[..., Tensor], examples: tuple[Tensor, ...], **_: Any) -> Any:
        made.append(examples)
        run(*examples)
        return lambda *inputs: run(*inputs) + 100

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return made


def test_the_first_shape_is_recorded_and_replayed(recorded: list[tuple[Tensor, ...]]) -> None:
    student, tokens = _Doubled(), torch.ones(2, 3)
    record_passes(student, accumulates=True)
    assert student(tokens).mean() == student(tokens + 0).mean() == 102
    assert len(recorded) == 1
    assert recorded[0][0] is not tokens


@pytest.mark.parametrize("other", ["shape", "documents", "transfer", "no gradients"])
def test_anything_else_runs_as_ever(recorded: list[tuple[Tensor, ...]], other: str) -> None:
    student, tokens = _Doubled(), torch.ones(2, 3)
    record_passes(student, accumulates=True)
    student(tokens)
    with torch.set_grad_enabled(other != "no gradients"):
        tokens = tokens[:1] if other == "shape" else tokens
        starts = torch.zeros(2, 3) if other == "documents" else None
        found = student(tokens, starts, transfer=True) if other == "transfer" else student(tokens, starts)
    assert found.mean() == (3 if other == "transfer" else 2)
    assert len(recorded) == 1


def test_nothing_is_recorded_without_gradients(recorded: list[tuple[Tensor, ...]]) -> None:
    student = _Doubled()
    record_passes(student, accumulates=True)
    with torch.no_grad():
        student(torch.ones(2, 3))
    assert not recorded


def test_gradients_of_two_micro_batches_do_not_share_memory(recorded: list[tuple[Tensor, ...]]) -> None:
    student = _Doubled()
    record_passes(student, accumulates=True)
    student(torch.ones(2, 3))
    given = torch.full((3,), 5.0)
    student.weight.backward(given)
    given.zero_()
    assert student.weight.grad is not None
    assert student.weight.grad.tolist() == [5, 5, 5]


def test_gradients_that_are_not_added_up_are_not_copied(recorded: list[tuple[Tensor, ...]]) -> None:
    student = _Doubled()
    record_passes(student, accumulates=False)
    student(torch.ones(2, 3))
    assert len(recorded) == 1
    assert not student.weight._backward_hooks


def test_hooks_on_the_parameters_see_the_replay_and_not_the_recording(recorded: list[tuple[Tensor, ...]]) -> None:
    student, tokens = _Doubled(), torch.ones(2, 3)
    seen: list[list[float]] = []
    student.weight.register_hook(lambda gradient: seen.append(gradient.tolist()))
    record_passes(student, accumulates=False)
    found = student(tokens)
    (_, stand_in) = recorded[0]
    assert stand_in.data_ptr() == student.weight.data_ptr(), "steps of the optimizer reach the recording"
    (2 * stand_in.sum()).backward()
    assert not seen
    found.sum().backward()
    assert seen == [[4.0] * 3]
    assert student.weight.grad is not None
