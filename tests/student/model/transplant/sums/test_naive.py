"""The naive recurrence is the sum over all earlier positions that its module writes down, in float64."""

import torch

from student.model.transplant.sums import naive
from student.model.transplant.sums.recurrence import HeadInputs
from student.model.transplant.sums.weighted import mean


def test_the_recurrence_is_a_weighted_mean_of_all_before() -> None:
    random = torch.Generator().manual_seed(0)
    rows, heads, length, features, size = 2, 3, 9, 8, 4
    q, k = (torch.rand(rows, heads, length, features, generator=random, dtype=torch.float64) for _ in range(2))
    v = torch.randn(rows, heads, length, size, generator=random, dtype=torch.float64)
    i = torch.randn(rows, heads, length, generator=random, dtype=torch.float64)
    log_forget = -torch.rand(rows, heads, length, generator=random, dtype=torch.float64)
    sums, _ = naive.recurrence(HeadInputs(q, k, v, i, log_forget), None, None)

    kept = log_forget.cumsum(-1)
    log_decay = kept[..., :, None] - kept[..., None, :] + i[..., None, :]
    weights = (q @ k.transpose(-1, -2)) * log_decay.exp().tril()
    expected = (weights @ v) / weights.sum(-1, keepdim=True)
    assert torch.allclose(mean(sums), expected, atol=1e-12)
