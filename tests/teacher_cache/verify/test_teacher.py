"""The verdict on a cache beside its teacher; a real teacher is run in tests/e2e/test_verify_repair.py."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delta_common.errors import UserError
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.verify import teacher as module
from teacher_cache.verify.objects import Findings
from teacher_cache.verify.teacher import CONTROL_FACTOR, Distance, verify_teacher


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("teacher") / "cache"
    sizes = {"rows": 20, "seq_len": 12, "vocab_size": 300, "hidden_size": 32, "rows_per_shard": 8}
    return open_cache(make_synthetic_cache(folder, **sizes, top_k=4, samples=12, hidden_stride=3))


@pytest.fixture
def cache(synthetic: Cache) -> Cache:
    """The synthetic cache as a real teacher would have made it, three rows at a time."""
    manifest = synthetic.manifest
    real = manifest.model_copy(
        update={
            "teacher": manifest.teacher.model_copy(
                update={"model_type": "qwen2", "dtype": "float32", "attention": "sdpa"}
            ),
            "compute": {**manifest.compute, "batch_size": 3},
        }
    )
    return Cache(synthetic.store, real, synthetic.commits)


@pytest.fixture
def weights(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The teacher that is loaded: it knows its weights only, those of the cache where a test does not change them."""
    identity = SimpleNamespace(weights_sha256=cache.manifest.teacher.weights_sha256)
    monkeypatch.setattr(module, "load_teacher", lambda settings: SimpleNamespace(identity=lambda: identity))
    return identity


def recomputed(monkeypatch: pytest.MonkeyPatch, live: float, control: float) -> list[range]:
    """Have the teacher give the cached values plus `live`, and in another batch shape `control` more."""
    asked: list[range] = []

    def recompute(cache: Cache, teacher: object, rows: range, batch_size: int) -> CachedRows:
        stored = cache.rows(rows)
        assert stored.values is not None
        same_shape = batch_size == len(rows)
        if same_shape:
            asked.append(rows)
        values = stored.values + (live if same_shape else live + control)
        return replace(stored, arrays={**stored.arrays, "logits/values": values})

    monkeypatch.setattr(module, "_recompute", recompute)
    return asked


@pytest.mark.parametrize(
    ("cached", "control", "sound"), [(0.0, 0.0, True), (0.31, 0.1, True), (0.33, 0.1, False), (0.02, 0.0, True)]
)
def test_cached_values_may_be_off_by_three_times_the_control_and_one_rounding(
    cached: float, control: float, sound: bool
) -> None:
    assert Distance(cached, control, rounding=0.02).is_sound is sound


@pytest.mark.parametrize(
    ("factor", "sound"), [(0.0, True), (CONTROL_FACTOR - 0.5, True), (CONTROL_FACTOR + 0.5, False)]
)
def test_a_cache_is_sound_where_its_teacher_is_no_nearer_to_itself(
    cache: Cache, weights: Any, monkeypatch: pytest.MonkeyPatch, factor: float, sound: bool
) -> None:
    recomputed(monkeypatch, live=0.25 * factor, control=0.25)
    findings = Findings(cache.path)
    verify_teacher(cache, findings, model=None, rows=6)
    assert findings.measures.keys() == {"teacher/values", "teacher/log_mass", "teacher/hidden_mean"}
    assert findings.measures["teacher/values"]["cached"] == pytest.approx(0.25 * factor, abs=1e-4)
    assert findings.measures["teacher/values"]["control"] == pytest.approx(0.25, abs=1e-4)
    assert [(fault.kind, fault.key) for fault in findings.faults] == ([] if sound else [("teacher", "values")])


def test_batches_are_those_of_the_build_spread_over_the_cache(
    cache: Cache, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recomputed(monkeypatch, live=0.0, control=0.0)
    verify_teacher(cache, Findings(cache.path), model=None, rows=1000)
    assert asked == [
        range(3),
        range(3, 6),
        range(6, 8),
        range(8, 11),
        range(11, 14),
        range(14, 16),
        range(16, 19),
        range(19, 20),
    ]
    asked.clear()
    verify_teacher(cache, Findings(cache.path), model=None, rows=6)
    assert asked == [range(3), range(19, 20)]


def test_other_weights_are_said_and_not_run(cache: Cache, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recomputed(monkeypatch, live=0.0, control=0.0)
    weights.weights_sha256 = "0" * 64
    findings = Findings(cache.path)
    verify_teacher(cache, findings, model=None, rows=6)
    assert [fault.problem for fault in findings.faults] == ["its weights are not those that made the cache"]
    assert asked == []


def test_the_teacher_is_looked_for_where_it_is_said_to_be(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    identity = SimpleNamespace(weights_sha256="other")
    monkeypatch.setattr(
        module, "load_teacher", lambda settings: (asked.append(settings), SimpleNamespace(identity=lambda: identity))[1]
    )
    for model in (None, "elsewhere"):
        verify_teacher(cache, Findings(cache.path), model=model, rows=1)
    assert [settings.model for settings in asked] == [cache.manifest.teacher.name, "elsewhere"]
    assert {settings.dtype for settings in asked} == {"float32"}


def test_a_synthetic_cache_has_no_teacher(synthetic: Cache) -> None:
    with pytest.raises(UserError, match="a synthetic cache, there is no teacher to run; leave --teacher out"):
        verify_teacher(synthetic, Findings(Path("x")), model=None, rows=1)
