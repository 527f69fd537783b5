"""Measures over temperature are means of what the reader gives, over rows spread over the cache."""

import pytest

from teacher_cache import Cache
from teacher_cache.inspect.curves import spread_rows, temperature_curves


def test_curves_are_means_of_what_the_reader_gives(long_cache: Cache) -> None:
    curves = temperature_curves(long_cache)
    assert curves is not None
    assert (curves.rows, curves.positions) == (16, 16 * 40)
    rows = spread_rows(long_cache, 16)
    for at in (0, 17, 40):
        targets = long_cache.targets(rows, temperature=float(curves.temperatures[at]))
        assert curves.entropy.mean[at] == pytest.approx(targets.entropy.mean(), abs=2e-3)
        assert curves.entropy.low[at] < curves.entropy.mean[at] < curves.entropy.high[at]
        if curves.retained_mass is not None:
            assert curves.retained_mass.mean[at] == pytest.approx(targets.probabilities.sum(-1).mean(), rel=1e-3)
    assert (curves.retained_mass is None) == (long_cache.layout.mode == "exact")


def test_rows_are_spread_over_the_shards_that_are_there(long_cache: Cache) -> None:
    assert spread_rows(long_cache, 4) == [0, 7, 14, 21]
    part = Cache(long_cache.store, long_cache.manifest, {shard: long_cache.commits[shard] for shard in (1, 5)})
    assert spread_rows(part, 100) == [4, 5, 6, 7, 20, 21]
    assert spread_rows(Cache(long_cache.store, long_cache.manifest, {}), 4) == []


def test_an_empty_cache_has_no_curves(long_cache: Cache) -> None:
    assert temperature_curves(Cache(long_cache.store, long_cache.manifest, {})) is None
