"""Window and sinks in bands, against every query by itself; the sinks that a chunk is given."""

import pytest
import torch
from torch import Tensor

from student.model.transplant.mixing import places
from student.model.transplant.sums import naive
from student.model.transplant.sums.weighted import mean
from student.model.transplant.sums.window import WindowInputs, chunk_size, sinks_by_chunk, window
from tests.helpers.transplants import starts_at

ROWS, HEADS, KEY_HEADS, WIDTH = 2, 4, 2, 3


def _inputs(length: int, size: int, sinks: int, place: Tensor, dtype: torch.dtype = torch.float64) -> WindowInputs:
    random = torch.Generator().manual_seed(length + size)

    def made(heads: int, *shape: int) -> Tensor:
        return torch.randn(ROWS, heads, *shape, WIDTH, generator=random).to(dtype).requires_grad_()

    chunks = -(-length // chunk_size(size, length))
    keys = [made(KEY_HEADS, size + length) for _ in range(2)]
    first = [made(KEY_HEADS, chunks, sinks) for _ in range(2)]
    return WindowInputs(made(HEADS, length), *keys, made(HEADS, length), *first, place)


@pytest.mark.parametrize("seen", [0, 5, 40])
@pytest.mark.parametrize(
    ("length", "size", "sinks"), [(1, 1, 0), (1, 6, 2), (20, 6, 2), (23, 7, 0), (12, 30, 3), (20, 1, 1)]
)
def test_values_and_gradients_are_the_twins(length: int, size: int, sinks: int, seen: int) -> None:
    starts = starts_at(length, [length // 2], [0, length - 1])
    inputs = _inputs(length, size, sinks, places(starts, torch.tensor([seen, 3]), length))
    found, expected = window(inputs, size, 0.4), naive.window(inputs, size, 0.4)
    assert torch.allclose(mean(found), mean(expected), rtol=0, atol=1e-12)
    assert torch.allclose(found.weight.log() + found.log_scale, expected.weight.log(), rtol=0, atol=1e-12)
    leaves = [x for x in inputs[:-1] if x.numel()]
    upstream = torch.randn(mean(found).shape, generator=torch.Generator().manual_seed(0)).double()
    ours, theirs = (
        torch.autograd.grad((mean(x) * upstream).sum(), leaves, allow_unused=True) for x in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, rtol=0, atol=1e-11)


def test_a_window_longer_than_a_chunk_goes_on_over_chunks() -> None:
    length, size = 150, 70
    inputs = _inputs(length, size, 2, places(None, torch.tensor([0, 90]), length))
    found, expected = window(inputs, size, 0.4), naive.window(inputs, size, 0.4)
    assert chunk_size(size, length) == 64
    assert torch.allclose(mean(found), mean(expected), rtol=0, atol=1e-12)


def test_scores_of_any_size_leave_numbers() -> None:
    inputs = _inputs(20, 6, 2, places(None, torch.tensor([0, 0]), 20), torch.float32)
    assert torch.isfinite(mean(window(inputs, 6, 1e4))).all()


def test_a_chunk_sees_the_sinks_of_the_document_it_begins_in() -> None:
    tokens = torch.arange(100.0, 112).view(1, 1, 12, 1)
    known = torch.tensor([[7.0, 8.0]]).view(1, 1, 2, 1)
    place = places(starts_at(12, [3]), torch.tensor([20]), 12)
    found = sinks_by_chunk(tokens, known, place, 4)
    assert found.flatten(3).squeeze().tolist() == [[7, 8], [103, 104], [103, 104]]


def test_sinks_that_were_only_begun_before_go_on_in_the_sequence() -> None:
    tokens, known = torch.arange(100.0, 108).view(1, 1, 8, 1), torch.tensor([[7.0, 0.0]]).view(1, 1, 2, 1)
    found = sinks_by_chunk(tokens, known, places(None, torch.tensor([1]), 8), 4)
    assert found.squeeze().tolist() == [[7, 100], [7, 100]]
