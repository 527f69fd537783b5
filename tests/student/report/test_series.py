"""Curves thinned without losing a mean, and what of a run there is to draw."""

from pathlib import Path

from student.report.series import MEASURES, charts
from tests.helpers.made_runs import a_run


def test_every_measure_has_a_chart_where_there_are_numbers(tmp_path: Path) -> None:
    assert [chart.measure for chart in charts([a_run(tmp_path / "a")])] == list(MEASURES)
