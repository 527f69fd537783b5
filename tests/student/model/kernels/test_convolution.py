"""The causal convolution against xlstm's: values, gradients, state, and documents as if each were alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from xlstm.components.conv import CausalConv1d, CausalConv1dConfig

from student.model.kernels.convolution import _plain_taps, _same_document, _Taps, causal_conv
from tests.helpers.documents import assert_same_gradients, spans, starts_of

FEATURES = 6
STARTS = [([0], [5]), ([1, 2, 3], [4, 6, 19]), (list(range(20)), []), ([18, 19], [0, 7, 8])]


def _convolution(dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalConv1d(CausalConv1dConfig(feature_dim=FEATURES)).to(dtype)


def _inputs(length: int, features: int = FEATURES) -> Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(2, length, features, generator=random).double().requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 40])
def test_the_convolution_is_xlstms(length: int) -> None:
    conv, x = _convolution(), _inputs(length)
    found, expected = causal_conv(conv, x)[0], conv(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert_same_gradients(found, expected, [x, *conv.parameters()])


@pytest.mark.parametrize("rows", STARTS)
def test_the_convolution_does_not_look_across_documents(rows: tuple[list[int], list[int]]) -> None:
    conv, x = _convolution(), _inputs(20)
    starts = starts_of(20, rows)
    found, _ = causal_conv(conv, x, None, starts)
    apart = [torch.cat([conv(x[row : row + 1, span]) for span in spans(starts[row])], dim=1) for row in (0, 1)]
    assert torch.allclose(found, torch.cat(apart), rtol=0, atol=1e-12)
    assert_same_gradients(found, torch.cat(apart), [x, *conv.parameters()])


@pytest.mark.parametrize("rows", [None, *STARTS])
def test_what_a_compiler_is_given_is_the_twin(rows: tuple[list[int], list[int]] | None) -> None:
    x = _inputs(20)
    taps, bias = (_inputs(4)[0], _inputs(4)[1, 0])
    taps, bias = (leaf.detach().requires_grad_() for leaf in (taps, bias))
    sees = [] if rows is None else list(_same_document(starts_of(20, rows), 4))
    found, expected = _plain_taps(x, taps, bias, sees), _Taps.apply(x, taps, bias, sees)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert_same_gradients(found, expected, [x, taps, bias])


@pytest.mark.parametrize("split", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("rows", [None, *STARTS])
def test_the_convolutions_state_continues_it(split: int, rows: tuple[list[int], list[int]] | None) -> None:
    conv, x = _convolution(), _inputs(20)
    starts = None if rows is None else starts_of(20, rows)
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
