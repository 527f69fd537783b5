"""Nearest positions by lag, against the twin."""

import pytest
import torch

from student.model.transplant.mixing import places
from student.model.transplant.sums import naive
from student.model.transplant.sums.nearby import nearby, with_past
from student.model.transplant.sums.weighted import mean
from tests.helpers.transplants import starts_at


@pytest.mark.parametrize("seen", [0, 2, 9])
@pytest.mark.parametrize("lags", [1, 2, 5])
def test_values_and_gradients_are_the_twins(lags: int, seen: int) -> None:
    random = torch.Generator().manual_seed(lags)
    log_weights = torch.randn(2, 3, 12, lags, generator=random).double().requires_grad_()
    v = torch.randn(2, 3, lags - 1 + 12, 4, generator=random).double().requires_grad_()
    place = places(starts_at(12, [7], [1, 2, 11]), torch.tensor([seen, 0]), 12)
    found, expected = nearby(log_weights, v, place), naive.nearby(log_weights, v, place)
    assert torch.allclose(mean(found), mean(expected), rtol=0, atol=1e-12)
    assert torch.allclose(found.weight.log() + found.log_scale, expected.weight.log(), rtol=0, atol=1e-12)
    upstream = torch.randn(2, 3, 12, 4, generator=random).double()
    ours, theirs = (torch.autograd.grad((mean(x) * upstream).sum(), [log_weights, v]) for x in (found, expected))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(ours, theirs, strict=True))


def test_weights_of_any_size_leave_numbers() -> None:
    log_weights, v = torch.full((1, 1, 3, 2), 500.0), torch.arange(4.0).view(1, 1, 4, 1)
    assert mean(nearby(log_weights, v, torch.tensor([[1, 2, 3]]))).flatten().tolist() == [0.5, 1.5, 2.5]


def test_without_a_past_there_are_zeros() -> None:
    assert with_past(torch.ones(1, 1, 2, 1), None, 3).flatten().tolist() == [0, 0, 0, 1, 1]
