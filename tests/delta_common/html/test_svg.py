"""Axes of charts: round numbers that hold every value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_common.html.svg import Scale, round_ticks, svg_points

sizes = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(sizes, sizes)
def test_ticks_are_few_even_and_around_all_values(one: float, other: float) -> None:
    low, high = sorted([one, other])
    ticks = round_ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (4.8, 5.9, [4.5, 5, 5.5, 6]),
        (3, 3, [3, 4]),
        (-7, 12, [-10, -5, 0, 5, 10, 15]),
    ],
)
def test_ticks_are_multiples_of_one_two_or_five(low: float, high: float, expected: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_a_scale_is_linear_and_puts_a_single_value_in_the_middle() -> None:
    across, up = Scale(0, 10, 50, 150), Scale(2, 2, 100, 0)
    assert [across(value) for value in (0, 2.5, 10)] == [50, 75, 150]
    assert svg_points([(0, 2), (10, 2)], across, up) == "50.0,50.0 150.0,50.0"
