"""Kept entries and log-mass against their definitions in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.keep import join, keep_targets, round_log_mass
from tests.helpers.layouts import keep, layout, zipf_logits
from tests.helpers.strategies import logit_rows


def log_mass_naive(logits: Tensor, kept: TargetLayout) -> Tensor:
    """`A(beta_j) = log sum_{i outside the top_k} exp(beta_j (z_i - z_max))`, as it is written, in float64."""
    z = logits.double().sort(dim=-1, descending=True).values
    rest = z[:, kept.top_k :] - z[:, :1]
    if not rest.shape[1]:
        return z.new_full((len(z), len(kept.node_temperatures)), LOG_MASS_FLOOR)
    masses = [torch.logsumexp(rest / t, dim=-1) for t in kept.node_temperatures]
    return torch.stack(masses, dim=-1).clamp(min=LOG_MASS_FLOOR)


@given(logit_rows(), st.data())
@settings(max_examples=80, deadline=None)
def test_log_mass_equals_its_definition_in_float64(logits: Tensor, data: st.DataObject) -> None:
    wanted = layout(data.draw(st.integers(1, logits.shape[1])))
    error = (keep(logits, wanted).log_mass.double() - log_mass_naive(logits, wanted)).abs().max()
    assert error <= wanted.log_mass_step / 2 + 4e-5


@given(logit_rows(), st.data())
@settings(max_examples=80, deadline=None)
def test_entries_are_the_largest_then_distinct_samples_in_rank_order(logits: Tensor, data: st.DataObject) -> None:
    vocab = logits.shape[1]
    wanted = layout(data.draw(st.integers(1, vocab)), data.draw(st.integers(0, 80)))
    kept = keep(logits, wanted)
    top = kept.values[:, : wanted.top_k]
    assert torch.equal(top, logits.float().sort(dim=-1, descending=True).values[:, : wanted.top_k])
    used = kept.values > -torch.inf
    used[:, : wanted.top_k] = True
    assert torch.equal(torch.where(used, kept.values, 0.0), torch.where(used, logits.float().gather(1, kept.ids), 0.0))
    assert (kept.values[:, :-1] >= kept.values[:, 1:]).all()
    assert (kept.ids[~used] == 0).all()
    for row in range(len(logits)):
        ids = kept.ids[row][used[row]].tolist()
        assert len(set(ids)) == len(ids)


def test_targets_do_not_depend_on_which_positions_are_worked_on_together() -> None:
    logits, wanted = zipf_logits(12, 700), layout(4, 16)
    uniform = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(12)

    whole = keep_targets(logits, labels, wanted, uniform)
    for row in range(12):
        one = keep_targets(logits[row : row + 1], labels[row : row + 1], wanted, uniform[row : row + 1])
        assert torch.equal(one.ids, whole.ids[row : row + 1])
        assert torch.equal(one.label_logits, logits[row, row : row + 1])


def test_joined_targets_are_those_of_all_positions() -> None:
    wanted = layout(4, 16)
    whole = keep(zipf_logits(9, 300), wanted)
    parts = [type(whole)(*(column[part] for column in vars(whole).values())) for part in (slice(2), slice(2, 9))]
    for name, column in vars(join(parts)).items():
        assert torch.equal(column, getattr(whole, name)), name


def test_log_mass_is_rounded_to_steps_and_never_below_the_floor() -> None:
    found = round_log_mass(torch.tensor([-torch.inf, -70.0, -1.0, 0.15, 0.1]), 0.25)
    assert found.tolist() == [LOG_MASS_FLOOR, LOG_MASS_FLOOR, -1.0, 0.25, 0.0]


def test_rounding_of_log_mass_has_mean_zero_over_positions() -> None:
    """Over 4,000 positions |z| < 4 of the mean (a bias of 2 % of a step shows); errors as even as rounding's are."""
    logits, wanted = zipf_logits(4_000, 300), layout(8)
    assert wanted.log_mass_step == 2.0**-9
    error = (keep(logits, wanted).log_mass.double() - log_mass_naive(logits, wanted)) / wanted.log_mass_step
    assert (error.mean(0).abs() < 4 / 12**0.5 / 4_000**0.5).all()
    assert (error.std(0) - 12**-0.5).abs().max() < 0.01


def test_logits_are_rounded_to_what_is_stored_before_anything_is_kept() -> None:
    logits = zipf_logits(3, 80)
    kept = keep(logits, layout(80, value_dtype="float16"))
    assert torch.equal(kept.values, kept.values.half().float())
    assert torch.equal(kept.values, logits.half().float().gather(1, kept.ids))
    assert torch.equal(kept.label_logits, logits[:, 0].half().float())
