"""Charts as SVG: places of values, what is marked, and words that are escaped."""

import re

import numpy as np
import pytest

from teacher_cache.inspect.charts import HEIGHT, LEFT, TOP, WIDTH, line_chart, share_bar, strip
from teacher_cache.inspect.curves import Curve
from teacher_cache.inspect.shards import ShardFigure

GRID = [1.0, 1.5, 2.0]
RISING = np.array([0.2, 0.5, 0.8])


def test_a_line_its_band_and_its_dots_stand_where_their_values_are() -> None:
    chart = line_chart(
        GRID, Curve(RISING, RISING - 0.1, RISING + 0.1), {"1": 0.0, "2": 1.0, "3": None}, "L", percent=True
    )
    (line,) = re.findall(r'<polyline points="([^"]*)"', chart)
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert heights == sorted(heights, reverse=True), "the page's y grows downwards"
    assert float(line.split(",")[0]) == LEFT
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert [float(cy) for _, cy in dots] == [HEIGHT - 34, TOP]
    (band,) = re.findall(r'<polygon points="([^"]*)"', chart)
    assert len(band.split()) == 6
    assert ">100%<" in chart


@pytest.mark.parametrize(("highest", "last"), [(0.05, "0.1"), (0.9, "1"), (7.0, "8"), (130.0, "150")])
def test_an_axis_ends_at_a_round_number_above_all_values(highest: float, last: str) -> None:
    curve = Curve(RISING * highest, RISING * 0, np.full(3, highest))
    chart = line_chart(GRID, curve, {}, "L", percent=False)
    labels = re.findall(r'text-anchor="end">([^<]*)<', chart)
    assert labels[0] == "0"
    assert labels[-1] == last


def test_labels_are_escaped() -> None:
    chart = line_chart(GRID, Curve(RISING, RISING, RISING), {}, '"><script>', percent=True)
    assert "<script>" not in chart
    assert f'viewBox="0 0 {WIDTH} {HEIGHT}"' in chart


def test_a_bar_is_as_long_as_its_share() -> None:
    assert 'width="50.0"' in share_bar(0.25)
    assert 'width="200"' in share_bar(1)


def test_each_shard_is_a_dot_and_unusual_ones_are_named() -> None:
    values = {shard: float(shard % 4) for shard in range(12)} | {12: 40.0}
    figure = ShardFigure("<figure>", "{:.0f} nats", values, 1.0, 1.0, [12])
    drawn = strip(figure)
    assert drawn.count("<circle") == 13
    assert drawn.count('class="dot unusual"') == 1
    assert "<title>shard 12: 40 nats</title>" in drawn
    assert "&lt;figure&gt; of 13 shards, from 0 nats to 40 nats" in drawn
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert len(set(places)) == 13, "equal values are stacked beside each other"


def test_a_tall_stack_is_cut_but_for_unusual_shards() -> None:
    figure = ShardFigure("f", "{:.0f}", dict.fromkeys(range(50), 1.0) | {50: 9.0}, 1.0, 1.0, [49])
    drawn = strip(figure)
    assert drawn.count("<circle") == 7 + 1 + 1
    assert "shard 49: 1" in drawn
