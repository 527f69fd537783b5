"""Kept entries, log-mass and the estimator against their definitions in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teacher_cache import estimate
from teacher_cache.format import LOG_MASS_FLOOR, chebyshev_temperatures
from teacher_cache.targets import keep_targets, log_mass_naive

NODES = chebyshev_temperatures()


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    """Rows of logits: normal, peaked, uniform, with ties and with -inf, as models and masks make them."""
    vocab = draw(st.integers(2, 200))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(4, vocab, generator=random) * draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()) and vocab > 3:
        logits[:, vocab // 2] = -torch.inf
    return logits.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))


@given(logit_rows(), st.data())
@settings(max_examples=80, deadline=None)
def test_log_mass_equals_its_definition_in_float64(logits: Tensor, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, logits.shape[1]))
    labels = torch.zeros(len(logits), dtype=torch.long)
    naive = log_mass_naive(logits.clone(), top_k=top_k, node_temperatures=NODES)
    kept = keep_targets(logits.clone(), labels, top_k=top_k, node_temperatures=NODES)
    assert torch.allclose(kept.log_mass.double(), naive, rtol=0, atol=1e-4)


@given(logit_rows(), st.data())
@settings(max_examples=40, deadline=None)
def test_kept_entries_are_the_largest_in_rank_order(logits: Tensor, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, logits.shape[1]))
    labels = torch.full((len(logits),), logits.shape[1] - 1)
    kept = keep_targets(logits.clone(), labels, top_k=top_k, node_temperatures=NODES)
    assert torch.equal(kept.values, logits.sort(dim=-1, descending=True).values[:, :top_k])
    assert torch.equal(kept.values, logits.gather(1, kept.ids))
    assert all(len(set(row)) == top_k for row in kept.ids.tolist())
    assert torch.equal(kept.label_logits, logits[:, -1].float())


@pytest.mark.parametrize("temperature", [1.0, 1.1, 1.25, 1.5, 1.8, 2.0])
def test_partition_mass_and_entropy_agree_with_the_full_distribution(temperature: float) -> None:
    random = torch.Generator().manual_seed(3)
    zipf = -2.5 * torch.log(torch.arange(1, 4001) + 2.0)
    logits = zipf + 1.5 * torch.randn(64, 4000, generator=random)
    kept = keep_targets(logits.clone(), torch.zeros(64, dtype=torch.long), top_k=32, node_temperatures=NODES)
    values, log_mass = kept.values.numpy(), kept.log_mass.numpy()
    scaled = logits.double() / temperature
    exact_log_z = torch.logsumexp(scaled - scaled.max(-1, keepdim=True).values, -1).numpy()
    p = torch.softmax(scaled, -1)
    exact_entropy = torch.special.entr(p).sum(-1).numpy()
    exact_mass = p.gather(1, kept.ids).sum(-1).numpy()
    assert np.abs(estimate.log_partition(values, log_mass, NODES, temperature) - exact_log_z).max() < 0.01
    assert np.abs(estimate.retained_mass(values, log_mass, NODES, temperature) - exact_mass).max() < 0.005
    assert np.abs(estimate.entropy(values, log_mass, NODES, temperature) - exact_entropy).max() < 0.03


def test_everything_kept_leaves_the_floor_and_all_mass() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    kept = keep_targets(logits.clone(), torch.zeros(5, dtype=torch.long), top_k=40, node_temperatures=NODES)
    assert torch.equal(kept.log_mass, torch.full((5, 5), LOG_MASS_FLOOR))
    mass = estimate.retained_mass(kept.values.numpy(), kept.log_mass.numpy(), NODES, 1.7)
    assert np.array_equal(mass, np.ones(5))
