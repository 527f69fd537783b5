"""The estimator against its definitions in float64, and its expectation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets import estimate
from tests.helpers.layouts import keep, layout, zipf_logits
from tests.helpers.strategies import logit_rows

TEMPERATURES = [1.0, 1.1, 1.25, 1.5, 1.8, 2.0]


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
    assert torch.allclose(given_by_cache[used], expected[kept.ids[used]], rtol=wanted.log_mass_step)


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


@pytest.mark.parametrize(("wanted", "positions"), [(layout(1), 5), (layout(4, 8), 1), (layout(4, 8), 2049)])
def test_the_fast_estimate_leaves_its_arguments_alone(wanted: TargetLayout, positions: int) -> None:
    kept = keep(zipf_logits(positions, 100), wanted)
    values, log_mass = kept.values.clone(), kept.log_mass.clone()
    estimate.estimate_at(kept.values, kept.log_mass, wanted, 1.5)
    assert torch.equal(kept.values, values)
    assert torch.equal(kept.log_mass, log_mass)


def test_the_variance_of_sampling_is_that_of_its_definition() -> None:
    """Its mean over 20,000 offsets against `sum_i p_i^2 (1 - pi_i)/pi_i` in float64: |z| < 4.5."""
    logits, wanted, offsets = zipf_logits(1, 200), layout(3, 12), 20_000
    kept = keep(logits.expand(offsets, -1), wanted, seed=4)
    included = estimate.inclusion_probabilities(kept.values, kept.log_mass, wanted)
    p = torch.exp(estimate.log_probabilities(kept.values, kept.log_mass, wanted, 1.5))
    found = estimate.mass_variance(p, included).double()
    pi = torch.tensor(inclusion_naive(logits[0].tolist(), wanted), dtype=torch.float64)
    exact = (torch.softmax(logits[0].double() / 1.5, -1).square() * (1 - pi) / pi).sum()
    assert abs(found.mean() - exact) < 4.5 * found.std() / offsets**0.5 + 1e-3 * exact


def test_a_temperature_outside_the_cached_range_is_refused() -> None:
    kept = keep(zipf_logits(2, 50), layout(4, 8))
    with pytest.raises(UserError, match=r"temperature 2\.5 is outside the cached range 1 to 2"):
        estimate.estimate_at(kept.values, kept.log_mass, layout(4, 8), 2.5)


def test_constants_made_in_inference_mode_serve_training() -> None:
    wanted = layout(3, temperatures=(1.0, 2.1))
    kept = keep(zipf_logits(2, 50), wanted)
    with torch.inference_mode():
        estimate.log_rest(kept.log_mass, wanted, 1.3)
    log_mass = kept.log_mass.clone().requires_grad_()
    estimate.log_rest(log_mass, wanted, 1.3).sum().backward()
    assert log_mass.grad is not None
    assert torch.allclose(log_mass.grad.sum(-1), torch.ones(2), atol=1e-5)
