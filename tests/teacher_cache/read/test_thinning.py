import pytest
import torch

from delta_common.errors import UserError
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.read.thinning import thin, thinned_layout
from teacher_cache.targets import estimate
from tests.helpers.golden import golden_manifest
from tests.helpers.layouts import keep, layout, zipf_logits


def uniforms(like: torch.Tensor, seed: int = 2) -> torch.Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))


def test_a_layout_is_thinned_to_what_it_holds() -> None:
    whole = layout(4, 16)
    assert thinned_layout(whole, None, None) == whole
    found = thinned_layout(whole, 2, 0)
    assert (found.top_k, found.samples) == (2, 0)
    assert found.node_temperatures == whole.node_temperatures


@pytest.mark.parametrize(
    ("top_k", "samples", "said"),
    [
        (5, None, r"targets\.top_k 5: the cache holds 4; choose 1 to 4"),
        (0, None, r"targets\.top_k 0: the cache holds 4; choose 1 to 4"),
        (None, 17, r"targets\.samples 17: the cache holds 16; choose 0 to 16"),
        (None, -1, r"targets\.samples -1: the cache holds 16; choose 0 to 16"),
    ],
)
def test_more_than_the_cache_holds_is_refused(top_k: int | None, samples: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        thinned_layout(layout(4, 16), top_k, samples)


def test_an_exact_cache_has_nothing_to_thin() -> None:
    with pytest.raises(UserError, match="exact mode and has no entries to thin; leave top_k and samples out"):
        thinned_layout(golden_manifest("exact").targets, 1, None)


def test_fewer_certain_entries_are_those_of_a_smaller_cache() -> None:
    logits, whole, wanted = zipf_logits(20, 400), layout(8), layout(3)
    kept, smaller = keep(logits, whole), keep(logits, wanted)
    ids, values, log_mass = thin(kept.ids, kept.values, kept.log_mass, whole, wanted, uniforms(kept.values))
    assert torch.equal(ids[:, :3], smaller.ids)
    assert torch.equal(values[:, :3], smaller.values)
    assert (values[:, 3:] == -torch.inf).all()
    assert (ids[:, 3:] == 0).all()
    assert (log_mass - smaller.log_mass).abs().max() < whole.log_mass_step


def test_what_is_kept_comes_first_and_nothing_thinned_is_the_same() -> None:
    logits, whole = zipf_logits(20, 400), layout(4, 16)
    kept = keep(logits, whole)
    same = thin(kept.ids, kept.values, kept.log_mass, whole, whole, uniforms(kept.values))
    for found, before in zip(same, (kept.ids, kept.values, kept.log_mass), strict=True):
        assert torch.equal(found, before)
    ids, values, _ = thin(kept.ids, kept.values, kept.log_mass, whole, layout(2, 6), uniforms(kept.values))
    used = values > -torch.inf
    assert (used[:, :-1] >= used[:, 1:]).all()
    assert torch.equal(values[used], logits.gather(1, ids)[used])


def test_thinned_entries_stay_as_often_as_the_smaller_layout_draws_them() -> None:
    """Frequencies over 20,000 offsets against the smaller layout's `pi`: z-scores at most 4.5 (seed fixed)."""
    logits, whole, wanted, offsets = zipf_logits(1, 200), layout(4, 40), layout(2, 10), 20_000
    kept = keep(logits.expand(offsets, -1), whole, seed=5)
    ids, values, log_mass = thin(kept.ids, kept.values, kept.log_mass, whole, wanted, uniforms(kept.values))
    used = values > -torch.inf
    counts = torch.bincount(ids[used], minlength=200).double()
    everything = logits.sort(dim=-1, descending=True)
    scales = estimate.proposal_scales(values[:1].double(), log_mass[:1].double(), wanted)
    relative = (everything.values - everything.values[:, :1]).double()[0]
    pi = sum(scale * torch.exp(relative / t) for scale, t in scales).clamp(max=1.0)
    pi[:2] = 1.0
    expected = torch.zeros(200, dtype=torch.float64).scatter_(0, everything.indices[0], pi)
    deviation = (expected * (1 - expected) * offsets).sqrt().clamp(min=1.0)
    assert ((counts - expected * offsets) / deviation).abs().max() < 4.5


def test_everything_certain_leaves_no_mass_to_add() -> None:
    kept = keep(zipf_logits(3, 30), layout(30))
    _, _, log_mass = thin(kept.ids, kept.values, kept.log_mass, layout(30), layout(30), uniforms(kept.values))
    assert (log_mass == LOG_MASS_FLOOR).all()
