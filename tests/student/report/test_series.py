"""Curves thinned without losing a mean, and what of a run there is to draw."""

from dataclasses import replace
from pathlib import Path

from student.report.series import MEASURES, charts
from tests.helpers.made_runs import a_run


def test_every_measure_has_a_chart_where_there_are_numbers(tmp_path: Path) -> None:
    assert [chart.measure for chart in charts([a_run(tmp_path / "a")])] == list(MEASURES)


def test_a_curve_covers_the_steps_whose_stage_has_the_measure(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    first = [{name: record[name] for name in ("step", "transfer")} for record in run.metrics[:10]]
    second = [{name: value for name, value in record.items() if name != "transfer"} for record in run.metrics[10:]]
    found = {chart.measure.key: chart.lines[0].steps for chart in charts([replace(run, metrics=first + second)])}
    assert found["transfer"] == list(range(1, 11))
    assert found["loss"] == list(range(11, 41))
