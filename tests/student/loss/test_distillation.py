"""The loss in one pass against autograd through the naive one: values, gradients, masks, chunks, kinds of targets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from student.loss.schedule import Coefficients
from tests.helpers.loss_cases import KINDS, Kind, gradient, make_case, relative_error


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 4])
@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_autograd(
    kind: Kind, temperature: float, chunk_tokens: int | None, bias: bool
) -> None:
    case, coefficients = make_case(kind, bias=bias), Coefficients(0.6, temperature, 0.1)
    (found, sums), (expected, naive_sums) = case.fused(coefficients, chunk_tokens), case.naive(coefficients)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(sums, naive_sums, rtol=1e-12)
    assert relative_error(*gradient(found, case.hidden), *gradient(expected, case.hidden)) < 1e-12
    assert not sums.requires_grad
    assert torch.all(gradient(case.fused(coefficients)[0], case.hidden)[0][~case.mask] == 0)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_no_shape_or_scale_breaks_it(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(2, 70))
    case = make_case(
        data.draw(st.sampled_from(KINDS)),
        seed=data.draw(st.integers(0, 2**31)),
        vocab=vocab,
        top_k=data.draw(st.integers(1, vocab)),
        samples=data.draw(st.integers(1, 20)),
        student_scale=data.draw(st.sampled_from([0.0, 0.3, 3.0, 30.0])),
        teacher_scale=data.draw(st.sampled_from([0.0, 0.3, 3.0, 20.0])),
        valid=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    alpha, temperature = data.draw(st.sampled_from([0.0, 0.3, 1.0])), data.draw(st.sampled_from([1.0, 1.1, 2.0]))
    coefficients = Coefficients(alpha, temperature, 0.0)
    found, sums = case.fused(coefficients, data.draw(st.sampled_from([None, 1, 3, 100])))
    expected, naive_sums = case.naive(coefficients)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(sums, naive_sums, rtol=1e-10, atol=1e-12)
    assert torch.allclose(*gradient(found, case.hidden), *gradient(expected, case.hidden), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_naive_loss_and_as_near_to_float64(kind: Kind, temperature: float) -> None:
    case = make_case(kind, vocab=3000, width=32).cast(torch.float32)
    exact, coefficients = case.cast(torch.float64), Coefficients(0.6, temperature, 0.1)
    found, naive, reference = case.fused(coefficients), case.naive(coefficients), exact.naive(coefficients)
    assert found[0].dtype == torch.float32
    for ours, theirs, right in zip(found, naive, reference, strict=True):
        assert relative_error(ours, theirs) < 1e-6
        assert relative_error(ours, right) < 1e-6
    ours, theirs = (gradient(total, case.hidden)[0] for total in (found[0], naive[0]))
    right = gradient(reference[0], exact.hidden)[0]
    assert relative_error(ours, theirs) < 1e-6
    assert relative_error(ours, right) < 2 * relative_error(theirs, right)


def test_gradients_pass_gradcheck() -> None:
    case = make_case(vocab=7, width=3)

    def loss(hidden: Tensor) -> Tensor:
        return replace(case, hidden=hidden).fused(Coefficients(0.6, 1.4, 0.2), chunk_tokens=2)[0]

    assert torch.autograd.gradcheck(loss, (case.hidden,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_and_no_more(kind: Kind, dtype: torch.dtype, tolerance: float) -> None:
    """As large as the naive loss's own rounding: `eps` times the largest logits, some 10, twice in a product."""
    case, coefficients = make_case(kind, student_scale=0.3, vocab=500).cast(dtype), Coefficients(0.6, 1.4, 0.1)
    exact = case.cast(torch.float64)
    (found, sums), (expected, naive_sums) = case.fused(coefficients), exact.naive(coefficients)
    assert found.dtype == torch.float32
    assert relative_error(sums, naive_sums) < tolerance
    assert relative_error(*gradient(found, case.hidden), *gradient(expected, exact.hidden)) < tolerance
