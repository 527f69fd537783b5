"""Curves thinned without losing a mean, and what of a run there is to draw."""

from dataclasses import replace
from pathlib import Path

import pytest

from student.report.series import MEASURES, charts
from tests.helpers.made_runs import a_run, a_run_on_two_caches


def test_every_measure_has_a_chart_where_there_are_numbers(tmp_path: Path) -> None:
    assert [chart.measure for chart in charts([a_run(tmp_path / "a")])] == list(MEASURES)


def test_a_curve_covers_the_steps_whose_stage_has_the_measure(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    first = [{name: record[name] for name in ("step", "transfer")} for record in run.metrics[:10]]
    second = [{name: value for name, value in record.items() if name != "transfer"} for record in run.metrics[10:]]
    found = {chart.measure.key: chart.lines[0].steps for chart in charts([replace(run, metrics=first + second)])}
    assert found["transfer"] == list(range(1, 11))
    assert found["loss"] == list(range(11, 41))


def test_a_single_run_on_several_caches_has_a_line_for_each(tmp_path: Path) -> None:
    mixed = a_run_on_two_caches(tmp_path / "a")
    found = {chart.measure.name: chart for chart in charts([mixed])}
    by_cache = found["KL at T, nats per token, by cache"]
    assert by_cache.caches == ("a", "b")
    assert [line.number for line in by_cache.lines] == [0, 1]
    assert [b - a for a, b in zip(*(line.values for line in by_cache.lines), strict=True)] == pytest.approx([1.0] * 40)
    assert [line.number for line in found["Frobenius term, by cache"].lines] == [0], "the second has no such term"
    held_out = found["Held-out KL at T = 1, nats per token"]
    assert held_out.caches == ("f00d", "cafe")
    assert [line.values for line in held_out.lines] == [[2.0] * 3, [3.0] * 3]


def test_several_runs_have_a_chart_for_each_held_out_cache(tmp_path: Path) -> None:
    mixed, single = a_run_on_two_caches(tmp_path / "a"), a_run(tmp_path / "b")
    found = {chart.measure.name: chart for chart in charts([mixed, single])}
    lines = {name.rpartition(" ")[2]: [line.run for line in chart.lines] for name, chart in found.items()
             if name.startswith("Held-out KL")}  # fmt: skip
    assert lines == {"f00d": [0, 1], "cafe": [0]}
    assert "KL at T, nats per token, by cache" not in found
