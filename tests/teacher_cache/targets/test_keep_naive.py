"""The naive twin itself, against definitions in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.targets.keep_naive import keep_naively, systematic_sample
from teacher_cache.targets.keep_torch import BLOCK
from tests.helpers.layouts import layout, zipf_logits


@given(st.integers(0, 2**31), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_systematic_samples_number_the_sum_rounded_up_or_down(seed: int, samples: int) -> None:
    random = torch.Generator().manual_seed(seed)
    inclusion = torch.rand(6, 3 * BLOCK, generator=random) ** 8
    inclusion *= (samples * torch.rand(6, 1, generator=random) / inclusion.sum(-1, keepdim=True)).clamp(max=1)
    uniform = torch.rand(6, generator=random, dtype=torch.float64)
    ids, used = systematic_sample(inclusion.clamp(max=1), uniform, samples)
    total = inclusion.clamp(max=1).double().sum(-1)
    assert ((used.sum(-1) - total).abs() < 1 + 1e-6).all()
    assert (inclusion.gather(1, ids)[used] > 0).all()


@pytest.mark.parametrize(("uniform", "drawn"), [(0.0, [0, 3]), (0.3, [0, 2]), (0.75, [0, 1]), (0.9, [0, 1])])
def test_marks_fall_where_the_running_sum_reaches_them(uniform: float, drawn: list[int]) -> None:
    """Probabilities 1, 0.5, 0.25, 0.25: marks at 1 - u and 2 - u in their running sum 1, 1.5, 1.75, 2."""
    inclusion = torch.tensor([[1.0, 0.5, 0.25, 0.25]])
    ids, used = systematic_sample(inclusion, torch.tensor([uniform], dtype=torch.float64), 2)
    assert ids[used].tolist() == drawn


def test_one_position_by_hand() -> None:
    z = [0.5, 3.0, 3.0, -1.0, 2.0]
    wanted = layout(2, 0)
    kept = keep_naively(torch.tensor([z]), torch.tensor([4]), wanted, torch.zeros(1, dtype=torch.float64))
    assert kept.ids.tolist() == [[1, 2]]
    assert kept.values.tolist() == [[3.0, 3.0]]
    assert kept.label_logits.tolist() == [2.0]
    for temperature, found in zip(wanted.node_temperatures, kept.log_mass[0].tolist(), strict=True):
        exact = math.log(sum(math.exp((z[i] - 3.0) / temperature) for i in (0, 3, 4)))
        assert abs(found - exact) <= wanted.log_mass_step / 2 + 1e-6
        assert (found / wanted.log_mass_step).is_integer()


def test_unused_places_hold_token_0_and_minus_infinity() -> None:
    wanted = layout(2, 40)
    kept = keep_naively(zipf_logits(3, 10), torch.zeros(3, dtype=torch.long), wanted, torch.full((3,), 0.5).double())
    unused = kept.values == -torch.inf
    assert unused.any(-1).all()
    assert (kept.ids[unused] == 0).all()
