"""What a commit record says of its shard is what the whole vocabulary says, in any batches."""

import pytest
import torch

from teacher_cache.build.statistics import ShardStatistics
from tests.helpers.layouts import keep, layout, zipf_logits

VOCAB = 200


def test_sums_are_those_of_the_whole_vocabulary_where_all_of_it_is_kept() -> None:
    logits, labels = zipf_logits(16, VOCAB), torch.zeros(16, dtype=torch.int64)
    of_all = layout(VOCAB)
    statistics = ShardStatistics(of_all)
    statistics.add(keep(logits, of_all), labels)
    sums = statistics.sums
    log_p = torch.log_softmax(logits.double(), -1)
    assert sums["cross_entropy"] == pytest.approx(float(-log_p[torch.arange(16), labels].sum()), rel=1e-4)
    assert sums["entropy@1"] == pytest.approx(float(-(log_p.exp() * log_p).sum()), rel=1e-3)
    assert sums["retained_mass@1"] == pytest.approx(16, rel=1e-4)
    assert sums["agreement"] == int((logits.argmax(-1) == labels).sum())
    assert sums["entries"] == 16 * VOCAB
    assert sums["entries_squared"] == 16 * VOCAB**2


def test_batches_add_up() -> None:
    logits, labels, kept = zipf_logits(12, VOCAB), torch.zeros(12, dtype=torch.int64), layout(4, 20)
    whole, parts = ShardStatistics(kept), ShardStatistics(kept)
    targets = keep(logits, kept)
    whole.add(targets, labels)
    for part in (slice(0, 5), slice(5, 12)):
        fields = {name: value[part] for name, value in vars(targets).items()}
        parts.add(type(targets)(**fields), labels[part])
    assert parts.sums == pytest.approx(whole.sums, rel=1e-6)
    assert parts.sums == pytest.approx(whole.sums, rel=1e-6), "asking twice changes nothing"


def test_a_shard_without_counted_positions_has_no_sums() -> None:
    assert ShardStatistics(layout(4)).sums == {}
