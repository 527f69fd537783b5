"""A plan foresees what the build then takes, from a few rows, and refuses what the build refuses."""

import math
from pathlib import Path

import pytest

from delta_common.errors import UserError
from delta_common.machine import matrix_work
from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.build.plan import BuildEstimate, Costs, make_plan, render_plan
from teacher_cache.inspect.summary import summarize
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import load_teacher
from tests.helpers.e2e_corpus import write_text_corpus


@pytest.fixture
def settings(tiny_teacher: Path, tmp_path: Path) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(tiny_teacher)},
            "corpus": {"source": str(write_text_corpus(tmp_path))},
            "rows": {"seq_len": 64, "count": 48},
            "targets": {"top_k": 4, "samples": 12},
            "hidden": {"mean": "int8", "stride": 2},
            "compute": {"batch_size": 8, "rows_per_shard": 16},
        }
    )


def test_a_plan_foresees_the_bytes_of_the_build_and_writes_nothing(settings: BuildSettings, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    plan = make_plan(settings, out)
    assert not out.exists()
    build(settings, out)
    summary = summarize(open_cache(out))
    assert plan.extent.tokens == summary["tokens"]
    assert plan.extent.shards == summary["shards"]["planned"]
    assert plan.bytes_per_token == pytest.approx(summary["bytes_per_token"], rel=0.1)
    assert plan.bytes_by_array.keys() == summary["arrays"].keys()
    assert plan.free_bytes is not None


def test_a_plan_foresees_the_share_of_the_peak_where_there_is_one(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    assert make_plan(settings, None).mfu is None
    monkeypatch.setattr(matrix_work, "matrix_peak", lambda device, dtype: 1e12)
    plan = make_plan(settings, None)
    operations = load_teacher(settings.teacher).operations
    assert operations is not None
    assert plan.mfu is not None
    by_hand = plan.extent.tokens_per_second * operations.total(1 / plan.counted, 1) / 1e12
    assert plan.padding == 0
    assert plan.mfu == pytest.approx(by_hand)
    Console(width=200).print(render_plan(plan))
    assert f"tokens/s, MFU {plan.mfu:.1%}, bound by" in capsys.readouterr().out


def test_more_samples_mean_less_error(settings: BuildSettings) -> None:
    few = make_plan(settings, None).gradient_error
    targets = settings.targets.model_copy(update={"samples": 120})
    many = make_plan(settings.model_copy(update={"targets": targets}), None).gradient_error
    assert few.keys() == {"1", "1.25", "1.5", "1.75", "2"}
    assert all(many[t] < few[t] for t in few)


def test_a_plan_says_when_the_disk_is_too_small(
    settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr("teacher_cache.build.plan._free_bytes", lambda _out: 10)
    Console().print(render_plan(make_plan(settings, tmp_path)))
    assert "TOO LITTLE" in capsys.readouterr().out


def test_a_plan_refuses_what_a_build_refuses(settings: BuildSettings) -> None:
    targets = settings.targets.model_copy(update={"top_k": 300})
    with pytest.raises(UserError, match=r"targets\.top_k 300: larger"):
        make_plan(settings.model_copy(update={"targets": targets}), None)


COSTS = Costs(
    read=1e-3, compute=4e-3, encode=2e-3, bytes_by_array={"a": 10.0, "b": 30.0}, load_seconds=60.0, teacher_bytes=500
)


@pytest.mark.parametrize(("overlapping", "per_token"), [(True, 4e-3), (False, 7e-3)])
def test_stages_beside_each_other_take_the_longest_and_others_the_sum(overlapping: bool, per_token: float) -> None:
    extent = BuildEstimate.of(COSTS, tokens=1e6, shards=20, overlapping=overlapping)
    assert extent.seconds == pytest.approx(per_token * 1e6 + 60)
    assert extent.tokens_per_second == pytest.approx(1 / per_token)
    assert extent.write_rate == pytest.approx(40 / per_token)
    assert extent.restart_seconds == pytest.approx(60 + per_token * 1e6 / 20 / 2)
    assert (extent.bytes, extent.objects) == (40e6 + 500, 20 * 4)
    assert extent.bound_by == "teacher and targets"
    assert list(extent.shares.values()) == pytest.approx([1 / 7, 4 / 7, 2 / 7])


def test_exact_mode_has_no_error_of_the_gradient(settings: BuildSettings) -> None:
    targets = type(settings.targets).model_validate({"mode": "exact"})
    hidden = settings.hidden.model_copy(update={"mean": "none"})
    plan = make_plan(settings.model_copy(update={"targets": targets, "hidden": hidden}), None)
    assert set(plan.gradient_error.values()) == {0.0}
    assert plan.free_bytes is None
    assert math.isfinite(plan.extent.seconds)
