"""Documents in one row are as if each had a row of its own: the convolution and the whole student."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from xlstm.components.conv import CausalConv1d, CausalConv1dConfig

from student.model.frozen import FrozenWeights
from student.model.kernels.convolution import causal_conv
from student.model.kernels.headwise import normalise_heads, project_heads
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student

FEATURES = 6
STARTS = [([0], [5]), ([1, 2, 3], [4, 6, 19]), (list(range(20)), []), ([18, 19], [0, 7, 8])]


def _convolution(dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalConv1d(CausalConv1dConfig(feature_dim=FEATURES)).to(dtype)


def _inputs(length: int, features: int = FEATURES) -> Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(2, length, features, generator=random).double().requires_grad_()


def _starts(length: int, rows: tuple[list[int], list[int]]) -> Tensor:
    starts = torch.zeros(2, length, dtype=torch.bool)
    for row, positions in enumerate(rows):
        starts[row, positions] = True
    return starts


def _spans(starts: Tensor) -> list[slice]:
    """The documents of one row (T,)."""
    bounds = [0, *(starts[1:].nonzero().flatten() + 1).tolist(), len(starts)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def _assert_same_gradients(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(found)
    ours, theirs = (torch.autograd.grad(y, leaves, upstream) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 40])
def test_the_convolution_is_xlstms(length: int) -> None:
    conv, x = _convolution(), _inputs(length)
    found, expected = causal_conv(conv, x)[0], conv(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _assert_same_gradients(found, expected, [x, *conv.parameters()])


@pytest.mark.parametrize("rows", STARTS)
def test_the_convolution_does_not_look_across_documents(rows: tuple[list[int], list[int]]) -> None:
    conv, x = _convolution(), _inputs(20)
    starts = _starts(20, rows)
    found, _ = causal_conv(conv, x, None, starts)
    apart = [torch.cat([conv(x[row : row + 1, span]) for span in _spans(starts[row])], dim=1) for row in (0, 1)]
    assert torch.allclose(found, torch.cat(apart), rtol=0, atol=1e-12)
    _assert_same_gradients(found, torch.cat(apart), [x, *conv.parameters()])


@pytest.mark.parametrize("split", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("rows", [None, *STARTS])
def test_the_convolutions_state_continues_it(split: int, rows: tuple[list[int], list[int]] | None) -> None:
    conv, x = _convolution(), _inputs(20)
    starts = None if rows is None else _starts(20, rows)
    begun, rest = (None, None) if starts is None else (starts[:, :split], starts[:, split:])
    with torch.no_grad():
        expected, expected_state = causal_conv(conv, x, None, starts)
        first, state = causal_conv(conv, x[:, :split], None, begun)
        second, final_state = causal_conv(conv, x[:, split:], state, rest)
    assert torch.allclose(torch.cat([first, second], dim=1), expected, rtol=0, atol=1e-12)
    assert torch.equal(final_state[0], expected_state[0])


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_xlstms_steps_go_on_from_the_convolutions_state(length: int) -> None:
    conv, x = _convolution(), _inputs(length + 1)
    with torch.no_grad():
        _, state = causal_conv(conv, x[:, :length])
        stepped, _ = conv.step(x[:, length:], state)
        assert torch.allclose(stepped, conv(x)[:, length:], rtol=0, atol=1e-12)


def test_the_convolution_in_bfloat16_adds_up_in_float32() -> None:
    conv, x = _convolution(torch.bfloat16), _inputs(40).detach().bfloat16()
    with torch.no_grad():
        found, _ = causal_conv(conv, x)
        exact, _ = causal_conv(conv.float(), x.float())
    assert torch.equal(found, exact.bfloat16())


def _student() -> XLSTMStudent:
    """Away from the initial state, whose recurrent weights are zero."""
    shape = resolve_shape(StudentSettings(blocks=3, heads=4, qkv_block_size=8), TeacherDims(32, 4, 4))
    random = torch.Generator().manual_seed(5)
    frozen = FrozenWeights(torch.randn(40, 32, generator=random), None, None, 40)
    student = build_student(shape, frozen, context_length=200, seed=1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return student


def _documents() -> tuple[Tensor, Tensor]:
    """Tokens (2, 200) and starts: over chunk borders, side by side, at both ends of a row."""
    tokens = torch.randint(0, 40, (2, 200), generator=torch.Generator().manual_seed(0))
    return tokens, _starts(200, ([0, 63, 64, 130, 131, 199], [20, 128]))


def _rows_apart(student: XLSTMStudent, tokens: Tensor, starts: Tensor) -> Tensor:
    rows = [[student(tokens[row : row + 1, span]) for span in _spans(starts[row])] for row in (0, 1)]
    return torch.cat([torch.cat(parts, dim=1) for parts in rows])


def test_the_students_documents_are_as_if_apart() -> None:
    student, (tokens, starts) = _student().double(), _documents()
    found, expected = student(tokens, starts), _rows_apart(student, tokens, starts)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    _assert_same_gradients(found, expected, list(student.parameters()))


def test_the_students_documents_are_as_if_apart_in_float32() -> None:
    student, (tokens, starts) = _student(), _documents()
    with torch.no_grad():
        found, expected = student(tokens, starts), _rows_apart(student, tokens, starts)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_is_done_head_by_head_is_xlstms() -> None:
    layer = _student().double().stack.blocks[1].xlstm
    x = _inputs(7, layer.q_proj.weight.shape[0] * 8)
    found, expected = project_heads(layer.q_proj, x), layer.q_proj(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _assert_same_gradients(found, expected, [x, layer.q_proj.weight])
    norm, h = layer.mlstm_cell.outnorm, x.unflatten(-1, (4, -1)).transpose(1, 2)
    found, expected = normalise_heads(norm, h), norm(h).transpose(1, 2).flatten(2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    _assert_same_gradients(found, expected, [x, norm.weight])
