"""Kept entries of a row in one form: what they say of tokens that were kept and of those that were not."""

import pytest
import torch

from teacher_cache import Cache
from teacher_cache.inspect.entries import RowEntries, fold, highest_unkept_logit, next_logits, row_entries
from teacher_cache.targets import estimate
from tests.helpers.layouts import keep, layout, zipf_logits

VOCAB = 500


def entries_of(top_k: int, samples: int) -> tuple[RowEntries, torch.Tensor]:
    """Kept entries of 200 distributions, and all their logits relative to the largest."""
    logits, kept_layout = zipf_logits(200, VOCAB), layout(top_k, samples)
    kept = keep(logits, kept_layout)
    entries = RowEntries(kept.ids.long(), kept.values, kept.log_mass, kept_layout)
    return entries, logits - logits.amax(-1, keepdim=True)


@pytest.mark.parametrize(("top_k", "samples"), [(8, 0), (4, 12), (4, 40)])
def test_no_token_that_was_not_kept_is_above_the_bound(top_k: int, samples: int) -> None:
    entries, logits = entries_of(top_k, samples)
    used = entries.values > -torch.inf
    kept = torch.zeros(len(logits), VOCAB + 1, dtype=torch.bool)
    kept.scatter_(1, torch.where(used, entries.ids, VOCAB), True)
    highest = logits.masked_fill(kept[:, :VOCAB], -torch.inf).amax(-1)
    bound = highest_unkept_logit(entries)
    assert (highest <= bound + 1e-4).all()
    smallest_certain = entries.values[:, top_k - 1] - entries.values[:, 0]
    assert (bound <= smallest_certain).all()
    if samples:
        assert (bound < smallest_certain - 0.1).any()


def test_the_next_tokens_logit_is_known_where_it_was_kept() -> None:
    entries, logits = entries_of(4, 12)
    following = torch.full((len(logits),), 7)
    found = next_logits(entries, following)
    kept = ((entries.ids == 7) & (entries.values > -torch.inf)).any(-1)
    torch.testing.assert_close(found[kept], logits[kept, 7])
    assert found[~kept].isnan().all()
    assert kept.any()
    assert not kept.all()


@pytest.mark.parametrize("samples", [0, 12])
def test_folding_keeps_the_distribution(samples: int) -> None:
    entries, _ = entries_of(40, samples)
    folded = fold(entries, 10)
    assert folded.layout.top_k == 10
    assert folded.ids.shape[-1] == 10 + samples
    for temperature in (1.0, 1.37, 2.0):
        one, other = (estimate.log_partition(e.values, e.log_mass, e.layout, temperature) for e in (entries, folded))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    weights = [estimate.target_weights(e.values, e.log_mass, e.layout, 1.0) for e in (entries, folded)]
    torch.testing.assert_close(weights[0][:, 40:], weights[1][:, 10:], atol=1e-5, rtol=1e-3)


def test_few_entries_need_no_folding() -> None:
    entries, _ = entries_of(8, 0)
    assert fold(entries, 8) is entries


def test_an_exact_row_holds_the_whole_vocabulary(long_cache: Cache) -> None:
    entries = row_entries(long_cache, 3)
    width = 300 if long_cache.layout.mode == "exact" else 26
    assert entries.ids.shape == (40, width)
    assert torch.isfinite(entries.values[:, 0]).all()


def test_some_positions_of_a_row(long_cache: Cache) -> None:
    entries = row_entries(long_cache, 3)
    some = entries.at(torch.tensor([1, 5]))
    torch.testing.assert_close(some.values, entries.values[[1, 5]])
    assert torch.equal(some.ids, entries.ids[[1, 5]])
    assert some.log_mass.shape == (2, len(long_cache.layout.node_temperatures))
