"""The chunkwise recurrence against its step-by-step twin: values, gradients, states, documents."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from student.model.kernels.chunks import Memory
from student.model.transplant.sums import naive
from student.model.transplant.sums.recurrence import HeadInputs, recurrence
from student.model.transplant.sums.weighted import Weighted, mean
from tests.helpers.transplants import starts_at

ROWS, HEADS, FEATURES, WIDTH = 2, 3, 6, 5
STARTS = [([0], [50]), ([64, 65], [63, 127]), ([10, 20, 21, 149], [0, 1, 65]), (list(range(150)), [])]


def _inputs(length: int, dtype: torch.dtype = torch.float64, *, forget: float = 2.0) -> HeadInputs:
    random = torch.Generator().manual_seed(length)
    q, k = torch.rand(2, ROWS, HEADS, length, FEATURES, generator=random, dtype=torch.float64)
    v = torch.randn(ROWS, HEADS, length, WIDTH, generator=random, dtype=torch.float64)
    i, f = torch.randn(2, ROWS, HEADS, length, generator=random, dtype=torch.float64)
    return HeadInputs(*(x.to(dtype).requires_grad_() for x in (q, k, v, i, logsigmoid(f + forget))))


def _part(inputs: HeadInputs, span: slice, row: slice = slice(None)) -> HeadInputs:
    return HeadInputs(*(x[row, :, span] for x in inputs))


def _logarithm(sums: Weighted) -> Tensor:
    return sums.weight.log() + sums.log_scale


def _assert_same(found: Weighted, expected: Weighted, leaves: list[Tensor], *, atol: float = 1e-10) -> None:
    upstream = torch.randn(found.values.shape, generator=torch.Generator().manual_seed(1)).to(found.values)
    gradients = []
    for sums in (found, expected):
        total = (mean(sums) * upstream).sum() + (_logarithm(sums) * upstream[..., 0]).sum()
        gradients.append(torch.autograd.grad(total, leaves))
    assert torch.allclose(mean(found), mean(expected), rtol=0, atol=atol)
    assert torch.allclose(_logarithm(found), _logarithm(expected), rtol=0, atol=atol)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=10 * atol * max(1.0, float(theirs.detach().abs().max())))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_values_and_gradients_are_those_of_single_steps(length: int) -> None:
    inputs = _inputs(length)
    _assert_same(recurrence(inputs, None, None)[0], naive.recurrence(inputs, None, None)[0], list(inputs))


@pytest.mark.parametrize("longest", [1, 3, 16, 150])
def test_chunks_of_any_size_give_the_same(longest: int) -> None:
    inputs, starts = _inputs(150), starts_at(150, [20], [64, 65])
    found, expected = recurrence(inputs, None, starts, longest)[0], recurrence(inputs, None, starts)[0]
    _assert_same(found, expected, list(inputs))


@pytest.mark.parametrize("rows", STARTS)
def test_documents_are_as_if_apart(rows: tuple[list[int], list[int]]) -> None:
    inputs, starts = _inputs(150), starts_at(150, *rows)
    parts = []
    for row in range(ROWS):
        bounds = [0, *(starts[row, 1:].nonzero().flatten() + 1).tolist(), 150]
        spans = [_part(inputs, slice(*span), slice(row, row + 1)) for span in pairwise(bounds)]
        sums = [recurrence(span, None, None)[0] for span in spans]
        parts.append([torch.cat(x, dim=2) for x in zip(*sums, strict=True)])
    apart = Weighted(*(torch.cat(x) for x in zip(*parts, strict=True)))
    _assert_same(recurrence(inputs, None, starts)[0], apart, list(inputs))


@pytest.mark.parametrize("split", [1, 64, 100, 149])
def test_the_memory_carries_everything(split: int) -> None:
    inputs, starts = _inputs(150), starts_at(150, [split], [30])
    whole, final = recurrence(inputs, None, starts)
    first, memory = recurrence(_part(inputs, slice(split)), None, starts[:, :split])
    second, last = recurrence(_part(inputs, slice(split, None)), memory, starts[:, split:])
    together = Weighted(*(torch.cat(x, dim=2) for x in zip(first, second, strict=True)))
    _assert_same(together, whole, list(inputs))
    scale = torch.exp(last.m - final.m)
    assert torch.allclose(last.c * scale[..., None, None], final.c, rtol=0, atol=1e-10)
    assert torch.allclose(last.n * scale[..., None], final.n, rtol=0, atol=1e-10)


def test_a_memory_of_zeros_is_an_empty_one() -> None:
    inputs = _inputs(70)
    like = torch.zeros(ROWS, HEADS, FEATURES, WIDTH, dtype=torch.float64)
    zeros = Memory(like, like[..., 0], like[..., 0, 0])
    for run in (recurrence, naive.recurrence):
        _assert_same(run(inputs, zeros, None)[0], recurrence(inputs, None, None)[0], list(inputs))


def test_what_was_forgotten_long_ago_costs_no_precision() -> None:
    """Logarithms of forget gates add up to -1500 here, where float32 is no finer than 1e-4."""
    exact, _ = recurrence(_inputs(1000, forget=-1.0), None, None)
    found, _ = recurrence(_inputs(1000, torch.float32, forget=-1.0), None, None)
    assert (mean(found) - mean(exact)).abs().max() < 1e-5 * mean(exact).abs().max()


@pytest.mark.parametrize("gate", [-95.0, -3000.0, 80.0])
def test_input_gates_far_from_zero_leave_numbers(gate: float) -> None:
    inputs = _inputs(70, torch.float32)
    inputs = inputs._replace(i=(inputs.i.detach() + gate).requires_grad_())
    sums, _ = recurrence(inputs, None, None)
    exact, _ = recurrence(_inputs(70), None, None)
    # At 3000 the gates themselves are rounded to 1e-4.
    assert (mean(sums) - mean(exact)).abs().max() < 3e-4
    for gradient in torch.autograd.grad(mean(sums).sum(), list(inputs)):
        assert torch.isfinite(gradient).all()


def test_products_in_16_bits_add_up_in_32() -> None:
    inputs = _inputs(150, torch.float32)
    narrow = inputs._replace(q=inputs.q.bfloat16(), k=inputs.k.bfloat16(), v=inputs.v.bfloat16())
    found, memory = recurrence(narrow, None, None)
    wide = narrow._replace(q=narrow.q.float(), k=narrow.k.float(), v=narrow.v.float())
    exact, _ = recurrence(wide, None, None)
    assert all(x.dtype == torch.float32 for x in (*found, *memory))
    assert (mean(found) - mean(exact)).abs().max() < 2**-6
