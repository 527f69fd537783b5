"""Channel sizes against their definition."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_common.errors import UserError
from student.loss.channel_scale import channel_rms
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.targets.states import SMALLEST_SHARE
from tests.helpers.cached_students import make_student


def with_rows(monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> None:
    """Make caches give rows with other arrays."""
    rows = Cache.rows

    def of(self: Cache, index: Any) -> CachedRows:
        found = rows(self, index)
        return replace(found, arrays={**found.arrays, **{name: new[list(index)] for name, new in changed.items()}})

    monkeypatch.setattr(Cache, "rows", of)


def test_channel_sizes_are_those_of_counted_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_student(tmp_path / "cache", hidden_stride=3, rows_per_shard=4)
    assert case.batch.averaged is not None
    mask = np.random.Generator(np.random.Philox(5)).random((6, 10)) < 0.5
    states, positions = case.batch.averaged.values.numpy().copy(), case.batch.averaged.positions.tolist()
    states[..., 7] = 0
    with_rows(monkeypatch, {"loss_mask": mask, "hidden/mean": states})
    kept = ((row, place, position) for row in range(4) for place, position in enumerate(positions[row]))
    counted = [states[row, place] for row, place, position in kept if position < 10 and mask[row, position]]
    expected = np.sqrt(np.mean(np.square(np.array(counted, dtype=np.float64)), axis=0))
    expected[7] = SMALLEST_SHARE * np.sort(expected)[19]
    assert np.allclose(channel_rms(case.cache).numpy(), expected, rtol=1e-6)


def test_channels_without_a_size_are_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_student(tmp_path / "cache")
    with_rows(monkeypatch, {"loss_mask": np.zeros((6, 10), dtype=bool)})
    with pytest.raises(UserError, match=r"no hidden states .* set distillation\.frobenius\.channels to raw"):
        channel_rms(case.cache)


def test_channels_that_were_drawn_have_the_sizes_that_the_cache_says(tmp_path: Path) -> None:
    case = make_student(tmp_path / "cache", hidden="int8", hidden_channels=9)
    sampling = case.cache.manifest.hidden.channels
    assert sampling is not None
    assert channel_rms(case.cache).tolist() == [2.0**exponent for exponent in sampling.exponents]
