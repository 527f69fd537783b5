"""Kept entries, log-mass and the estimator against their definitions in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets import estimate
from teacher_cache.targets.keep_naive import systematic_sample
from teacher_cache.targets.keep_torch import BLOCK
from tests.helpers.layouts import keep, layout, zipf_logits

TEMPERATURES = [1.0, 1.1, 1.25, 1.5, 1.8, 2.0]


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    """Rows of logits: normal, peaked, uniform, with ties and with -inf, as models and masks make them."""
    vocab = draw(st.integers(2, 300))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(4, vocab, generator=random) * draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()) and vocab > 3:
        logits[:, vocab // 2] = -torch.inf
    if draw(st.booleans()):
        logits[:, vocab // 3] += 80.0
    return logits.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


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
    assert torch.allclose(keep(logits, wanted).log_mass.double(), log_mass_naive(logits, wanted), rtol=0, atol=1e-4)


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


@given(logit_rows(), st.data())
@settings(max_examples=60, deadline=None)
def test_weights_are_finite_and_the_estimator_of_everything_kept_is_exact(logits: Tensor, data: st.DataObject) -> None:
    temperature = data.draw(st.sampled_from(TEMPERATURES))
    everything = layout(logits.shape[1])
    kept = keep(logits, everything)
    weights = estimate.target_weights(kept.values, kept.log_mass, everything, temperature)
    exact = torch.softmax(logits.double() / temperature, -1).gather(1, kept.ids)
    assert torch.allclose(weights.double(), exact, rtol=1e-4, atol=1e-7)
    some = layout(1, 16)
    kept = keep(logits, some)
    assert estimate.target_weights(kept.values, kept.log_mass, some, temperature).isfinite().all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("top_k", [4, 8, 32])
def test_partition_and_entropy_agree_with_the_full_distribution(temperature: float, top_k: int) -> None:
    logits, wanted = zipf_logits(64, 4000), layout(top_k)
    kept = keep(logits, wanted)
    scaled = logits.double() / temperature
    exact_log_z = torch.logsumexp(scaled - scaled.amax(-1, keepdim=True), -1)
    p = torch.softmax(scaled, -1)
    off = estimate.log_partition(kept.values, kept.log_mass, wanted, temperature) - exact_log_z
    assert off.abs().max() < 0.01
    assert off.square().mean().sqrt() < 0.002
    entropy = estimate.entropy(kept.values, kept.log_mass, wanted, temperature)
    assert (entropy - torch.special.entr(p).sum(-1)).abs().max() < 0.05
    mass = estimate.retained_mass(kept.values, kept.log_mass, wanted, temperature)
    assert (mass - p.gather(1, kept.ids).sum(-1)).abs().max() < 0.005


def test_everything_kept_leaves_the_floor_and_all_mass() -> None:
    logits, wanted = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)), layout(40)
    kept = keep(logits, wanted)
    assert torch.equal(kept.log_mass, torch.full((5, 5), LOG_MASS_FLOOR))
    assert torch.allclose(estimate.retained_mass(kept.values, kept.log_mass, wanted, 1.7), torch.ones(5))


def inclusion_naive(z: list[float], kept: TargetLayout) -> list[float]:
    """`min(1, n sum_j a_j p_i(T_j))` of one position over its whole vocabulary, in Python floats."""
    rates = [0.0] * len(z)
    for temperature, share in kept.proposal:
        log_z = math.log(sum(math.exp(value / temperature) for value in z))
        rates = [r + share * math.exp(v / temperature - log_z) for r, v in zip(rates, z, strict=True)]
    top = set(sorted(range(len(z)), key=lambda i: -z[i])[: kept.top_k])
    return [1.0 if i in top else min(1.0, kept.samples * rate) for i, rate in enumerate(rates)]


def test_inclusion_probabilities_equal_their_definition_and_the_frequencies() -> None:
    """Frequencies over 6,000 offsets: 300 binomial z-scores at most 4.5 (false alarm about 0.2 %; seed fixed)."""
    logits, wanted = zipf_logits(1, 300), layout(3, 12)
    expected = torch.tensor(inclusion_naive(logits[0].tolist(), wanted))
    offsets = 6_000
    kept = keep(logits.expand(offsets, -1), wanted)
    used = kept.values > -torch.inf
    counts = torch.bincount(kept.ids[used], minlength=300).double()
    deviation = (expected * (1 - expected) * offsets).sqrt().clamp(min=1.0)
    assert ((counts - expected * offsets) / deviation).abs().max() < 4.5
    given_by_cache = estimate.inclusion_probabilities(kept.values, kept.log_mass, wanted)
    assert torch.allclose(given_by_cache[used], expected[kept.ids[used]], rtol=2e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.25, 1.5, 2.0])
def test_the_estimator_is_unbiased_at_every_temperature(temperature: float) -> None:
    """Mean over 20,000 offsets of 40 random linear functionals: |z| < 4.5 (false alarm 0.03 % a temperature).

    A bias of 4 % of a functional's spread over one draw would be found with a power of 90 %.
    """
    logits, wanted, offsets = zipf_logits(1, 500), layout(4, 16), 20_000
    functionals = torch.randn(500, 40, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    kept = keep(logits.expand(offsets, -1), wanted, seed=11)
    weights = estimate.target_weights(kept.values, kept.log_mass, wanted, temperature).double()
    dense = torch.zeros(offsets, 500, dtype=torch.float64).scatter_add_(1, kept.ids, weights)
    estimates = dense @ functionals
    log_z_kept = estimate.log_partition(kept.values[:1], kept.log_mass[:1], wanted, temperature).double()
    z = logits[0].double() - logits.max()
    exact = torch.exp(z / temperature - log_z_kept) @ functionals
    z_scores = (estimates.mean(0) - exact) / (estimates.std(0) / offsets**0.5)
    assert z_scores.abs().max() < 4.5


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


def test_targets_do_not_depend_on_which_positions_are_worked_on_together() -> None:
    logits, wanted = zipf_logits(12, 700), layout(4, 16)
    uniform = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(12)
    from teacher_cache.targets.keep import keep_targets

    whole = keep_targets(logits, labels, wanted, uniform)
    for row in range(12):
        one = keep_targets(logits[row : row + 1], labels[row : row + 1], wanted, uniform[row : row + 1])
        assert torch.equal(one.ids, whole.ids[row : row + 1])
        assert torch.equal(one.label_logits, logits[row, row : row + 1])


@given(logit_rows(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_fast_estimate_equals_the_definitions_one_by_one(logits: Tensor, data: st.DataObject) -> None:
    top_k, samples = data.draw(st.integers(1, logits.shape[1])), data.draw(st.sampled_from([0, 16]))
    proposals = [((1.0, 0.5), (4 / 3, 0.3), (2.0, 0.2)), ((1.0, 1.0),), ((1.07, 0.4), (1.9, 0.6))]
    wanted = layout(top_k, samples, proposal=data.draw(st.sampled_from(proposals)))
    temperature = data.draw(st.sampled_from(TEMPERATURES))
    kept = keep(logits, wanted)
    arguments = kept.values.double(), kept.log_mass.double(), wanted, temperature
    found = estimate.estimate_at(*arguments)
    for name, expected in {
        "weights": estimate.target_weights(*arguments),
        "log_partition": estimate.log_partition(*arguments),
        "entropy": estimate.entropy(*arguments),
    }.items():
        assert torch.allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-9), name
