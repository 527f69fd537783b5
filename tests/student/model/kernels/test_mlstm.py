"""The chunkwise mLSTM against xlstm's own cell: values, gradients, states, documents."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from xlstm.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig

from student.model.kernels.mlstm import mlstm_sequence

BATCH = 2
LENGTHS = (1, 63, 64, 65, 200)
HEADS = ((1, 16), (4, 8), (3, 12))


def _case(
    length: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float64
) -> tuple[Any, list[Tensor], Tensor]:
    """A cell away from its initial state, queries, keys and values, and an upstream gradient."""
    width = heads * head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(length * 100 + heads)
        cell = mLSTMCell(mLSTMCellConfig(length, width, heads))
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
        *qkv, upstream = torch.randn(4, BATCH, length, width)
    return cell.to(dtype), [x.to(dtype).requires_grad_() for x in qkv], upstream.to(dtype)


def _gradients(output: Tensor, upstream: Tensor, cell: Any, qkv: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output, [*qkv, *cell.parameters()], upstream))


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected.detach()).abs().max())


def _steps(cell: Any, qkv: list[Tensor], state: Any) -> tuple[Tensor, Any]:
    """xlstm's recurrent form, which wants its inputs for itself."""
    outputs = []
    for position in range(qkv[0].shape[1]):
        output, state = cell.step(*(x[:, position : position + 1].clone() for x in qkv), state)
        outputs.append(output)
    return torch.cat(outputs, dim=1), state


def _documents_apart(cell: Any, qkv: list[Tensor], starts: Tensor) -> Tensor:
    rows = []
    for row, begins in enumerate(starts):
        bounds = [0, *(begins[1:].nonzero().flatten() + 1).tolist(), len(begins)]
        spans = [slice(begin, end) for begin, end in pairwise(bounds)]
        rows.append(torch.cat([cell(*(x[row : row + 1, span] for x in qkv)) for span in spans], dim=1))
    return torch.cat(rows)


def _starts(length: int, *rows: list[int]) -> Tensor:
    starts = torch.zeros(BATCH, length, dtype=torch.bool)
    for row, positions in enumerate(rows):
        starts[row, positions] = True
    return starts


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("heads", "head_dim"), HEADS)
def test_values_and_gradients_are_those_of_xlstms_cell(length: int, heads: int, head_dim: int) -> None:
    cell, qkv, upstream = _case(length, heads, head_dim)
    expected, (found, _) = cell(*qkv), mlstm_sequence(cell, *qkv)
    assert _difference(found, expected) < 1e-9
    pairs = zip(_gradients(found, upstream, cell, qkv), _gradients(expected, upstream, cell, qkv), strict=True)
    assert max(_difference(ours, theirs) for ours, theirs in pairs) < 1e-9


@pytest.mark.parametrize("length", [65, 200])
def test_float32_is_no_further_from_float64_than_xlstms_cell(length: int) -> None:
    exact_cell, exact_qkv, exact_upstream = _case(length, 4, 8)
    exact_output = exact_cell(*exact_qkv)
    exact = [exact_output, *_gradients(exact_output, exact_upstream, exact_cell, exact_qkv)]
    cell, qkv, upstream = _case(length, 4, 8, torch.float32)
    errors = []
    for output in (mlstm_sequence(cell, *qkv)[0], cell(*qkv)):
        found = [output, *_gradients(output, upstream, cell, qkv)]
        errors.append([_difference(a, b) / float(b.detach().abs().max()) for a, b in zip(found, exact, strict=True)])
    ours, theirs = errors
    assert all(a < 1e-5 + b for a, b in zip(ours, theirs, strict=True))
    assert ours[0] < 1e-5


@pytest.mark.parametrize("split", [1, 64, 100, 199])
def test_parallel_and_recurrent_parts_mix(split: int) -> None:
    cell, qkv, _ = _case(200, 4, 8)
    with torch.no_grad():
        expected, parts = cell(*qkv), [[x[:, :split] for x in qkv], [x[:, split:] for x in qkv]]
        begun, state = mlstm_sequence(cell, *parts[0])
        continued, final = mlstm_sequence(cell, *parts[1], state)
        stepped, stepped_final = _steps(cell, parts[1], state)
    assert _difference(torch.cat([begun, continued], dim=1), expected) < 1e-9
    assert _difference(torch.cat([begun, stepped], dim=1), expected) < 1e-9
    for found, twin in zip(final, stepped_final, strict=True):
        assert found.shape == twin.shape
        assert _difference(found, twin) < 1e-9


def test_gradients_in_a_state_are_those_of_recurrent_steps() -> None:
    cell, qkv, upstream = _case(70, 3, 12)
    with torch.no_grad():
        _, state = mlstm_sequence(cell, *(x.flip(1) for x in qkv))
    state = tuple(part.requires_grad_() for part in state)
    gradients = []
    for output, final in (mlstm_sequence(cell, *qkv, state), _steps(cell, qkv, state)):
        total = (output * upstream).sum() + sum(part.square().sum() for part in final)
        gradients.append(torch.autograd.grad(total, [*state, *qkv, *cell.parameters()]))
    assert max(_difference(ours, theirs) for ours, theirs in zip(*gradients, strict=True)) < 1e-9


BOUNDARIES = [
    ([0], [50]),
    ([64, 128], [63, 127, 191]),
    ([10, 20, 21, 22, 199], [0, 1, 65, 150]),
    (list(range(200)), []),
]


@pytest.mark.parametrize("rows", BOUNDARIES)
def test_documents_are_as_if_apart(rows: tuple[list[int], list[int]]) -> None:
    cell, qkv, upstream = _case(200, 4, 8)
    starts = _starts(200, *rows)
    found, expected = mlstm_sequence(cell, *qkv, None, starts)[0], _documents_apart(cell, qkv, starts)
    assert _difference(found, expected) < 1e-9
    pairs = zip(_gradients(found, upstream, cell, qkv), _gradients(expected, upstream, cell, qkv), strict=True)
    assert max(_difference(ours, theirs) for ours, theirs in pairs) < 1e-9


@pytest.mark.parametrize("rows", BOUNDARIES)
def test_documents_are_as_if_apart_in_float32(rows: tuple[list[int], list[int]]) -> None:
    cell, qkv, _ = _case(200, 4, 8, torch.float32)
    starts = _starts(200, *rows)
    with torch.no_grad():
        found, expected = mlstm_sequence(cell, *qkv, None, starts)[0], _documents_apart(cell, qkv, starts)
    assert _difference(found, expected) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("start", [0, 5, 129])
def test_a_document_start_drops_the_state_too(start: int) -> None:
    cell, qkv, _ = _case(130, 4, 8)
    starts = _starts(130, [start], [start])
    with torch.no_grad():
        _, state = mlstm_sequence(cell, *(x.flip(1) for x in qkv))
        found, final = mlstm_sequence(cell, *qkv, state, starts)
        before, _ = mlstm_sequence(cell, *(x[:, :start] for x in qkv), state) if start else (found[:, :0], None)
        after, expected_final = mlstm_sequence(cell, *(x[:, start:] for x in qkv))
    assert _difference(found, torch.cat([before, after], dim=1)) < 1e-9
    assert max(_difference(ours, theirs) for ours, theirs in zip(final, expected_final, strict=True)) < 1e-9


def test_what_was_forgotten_long_ago_costs_no_precision() -> None:
    """Logarithms of forget gates add up to -1300 here, where float32 is no finer than 1e-4."""
    exact_cell, exact_qkv, _ = _case(1000, 1, 16)
    cell, qkv, _ = _case(1000, 1, 16, torch.float32)
    with torch.no_grad():
        for each in (exact_cell, cell):
            each.fgate.weight.zero_()
            each.fgate.bias.fill_(-1)
        expected = exact_cell(*exact_qkv)
        ours, theirs = (_difference(found, expected) for found in (mlstm_sequence(cell, *qkv)[0], cell(*qkv)))
    assert ours < 1e-5 * float(expected.abs().max())
    assert ours < theirs / 4


def test_bfloat16_is_nearer_to_float32_than_in_xlstms_cell() -> None:
    cell, qkv, _ = _case(100, 4, 8, torch.bfloat16)
    with torch.no_grad():
        found, state = mlstm_sequence(cell, *qkv)
        theirs = cell(*qkv)
        expected, _ = mlstm_sequence(cell.float(), *(x.float() for x in qkv))
    assert found.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in state)
    assert _difference(found, expected) < 2**-7 * float(expected.abs().max())
    assert _difference(found, expected) < _difference(theirs, expected) / 4


def test_unknown_and_unfit_kernels_are_refused() -> None:
    cell, qkv, _ = _case(4, 1, 16)
    with pytest.raises(ValueError, match="kernels is 'fast'; it must be one of auto, torch, triton"):
        mlstm_sequence(cell, *qkv, kernels="fast")
    with pytest.raises(ValueError, match="'triton' takes no float64"):
        mlstm_sequence(cell, *qkv, kernels="triton")


@pytest.mark.parametrize("bias", [-85.0, -95.0, -300.0])
def test_closed_input_gates_leave_gradients_that_are_numbers(bias: float) -> None:
    """Below -88.7 exp(-m) is infinite in float32; xlstm's cell, and so did this one, then gives none."""
    cell, qkv, upstream = _case(70, 2, 16, torch.float32)
    with torch.no_grad():
        cell.igate.bias.fill_(bias)
    output, _ = mlstm_sequence(cell, *qkv)
    assert torch.isfinite(output).all()
    for gradient in _gradients(output, upstream, cell, qkv):
        assert torch.isfinite(gradient).all()
