"""Charts as SVG: everything lies inside its frame."""

import re
from pathlib import Path

import pytest

from student.report.charts import BOTTOM, HEIGHT, TOP, figure
from student.report.series import charts
from tests.helpers.made_runs import a_run


@pytest.mark.parametrize("factor", [1e-5, 0.37, 1.94, 26.0, 3e4])
def test_nothing_is_drawn_outside_its_frame(tmp_path: Path, factor: float) -> None:
    for chart in charts([a_run(tmp_path / "a", factor=factor)]):
        drawn = figure(chart, 0)
        heights = [float(y) for y in re.findall(r' y[12]="([\d.-]+)"', drawn)]
        heights += [
            float(pair.split(",")[1]) for points in re.findall(r'points="([^"]+)"', drawn) for pair in points.split()
        ]
        assert min(heights) == TOP
        assert max(heights) == HEIGHT - BOTTOM


def test_the_frobenius_terms_caption_says_what_it_cannot_do(tmp_path: Path) -> None:
    captions = {chart.measure.key: figure(chart, 0) for chart in charts([a_run(tmp_path / "a")])}
    assert "cannot reach raw states of massive activation" in captions["frobenius"]
    assert "massive" not in captions["kl"]
