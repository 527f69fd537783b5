"""Sums of weights: adding two is one softmax over both."""

import torch
from torch import Tensor

from student.model.kernels.chunks import NOTHING
from student.model.transplant.sums.weighted import Weighted, added, mean


def _sums(scores: Tensor, v: Tensor) -> Weighted:
    scale = scores.amax(-1)
    weights = torch.exp(scores - scale[..., None])
    return Weighted(weights @ v, weights.sum(-1), scale)


def test_added_sums_are_those_of_one_softmax() -> None:
    random = torch.Generator().manual_seed(0)
    scores, v = (
        300 * torch.randn(2, 3, 4, 9, generator=random).double(),
        torch.randn(2, 3, 9, 5, generator=random).double(),
    )
    found = mean(added(_sums(scores[..., :4], v[:, :, :4]), _sums(scores[..., 4:], v[:, :, 4:])))
    assert torch.allclose(found, scores.softmax(-1) @ v, rtol=0, atol=1e-12)


def test_where_nothing_is_seen_the_mean_is_zero_and_adds_nothing() -> None:
    none = Weighted(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1), torch.full((1, 1, 1), NOTHING))
    one = Weighted(torch.ones(1, 1, 1, 2), torch.full((1, 1, 1), 4.0), torch.full((1, 1, 1), -90.0))
    assert torch.equal(mean(none), torch.zeros(1, 1, 1, 2))
    assert torch.equal(mean(added(none, one)), torch.full((1, 1, 1, 2), 0.25))
