"""Channel sizes against their definition."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_common.errors import UserError
from student.loss.channel_scale import SMALLEST_SHARE, channel_rms
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
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
    assert case.batch.hidden_mean is not None
    mask = np.random.Generator(np.random.Philox(5)).random((6, 10)) < 0.5
    states = case.batch.hidden_mean.numpy().copy()
    states[..., 7] = 0
    with_rows(monkeypatch, {"loss_mask": mask, "hidden/mean": states})
    counted = [states[r, t // 3] for r in range(4) for t in range(0, 10, 3) if mask[r, t]]
    expected = np.sqrt(np.mean(np.square(np.array(counted, dtype=np.float64)), axis=0))
    expected[7] = SMALLEST_SHARE * np.sort(expected)[19]
    assert np.allclose(channel_rms(case.cache).numpy(), expected, rtol=1e-6)


def test_channels_without_a_size_are_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_student(tmp_path / "cache")
    with_rows(monkeypatch, {"loss_mask": np.zeros((6, 10), dtype=bool)})
    with pytest.raises(UserError, match=r"no hidden states .* set distillation\.frobenius\.channels to raw"):
        channel_rms(case.cache)
