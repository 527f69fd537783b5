"""What may be said of a difference between variants."""

import pytest

from experiments.results.spread import Difference, Spread, difference


def test_mean_and_deviation() -> None:
    assert Spread.of({1: 1.0, 2: 2.0, 3: 3.0}).words(2) == "2.00 ± 1.00"
    assert Spread.of({1: 1.5}).words(1) == "1.5"


def test_differences_are_paired_by_seed() -> None:
    found = difference({1: 1.0, 2: 2.1, 3: 3.2}, {3: 3.0, 1: 1.0, 2: 2.0, 9: 50.0})
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert found.spread == pytest.approx(1.1)
    assert not found.is_beyond
    assert difference({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(
    ("mean", "half_width", "spread", "beyond"),
    [
        (0.3, 0.1, 0.2, True),
        (0.3, 0.4, 0.2, False),
        (0.3, 0.1, 0.4, False),
        (-0.3, 0.1, 0.2, True),
        (9, None, None, False),
    ],
)
def test_a_difference_counts_beyond_spread_and_interval(mean, half_width, spread, beyond) -> None:
    assert Difference(mean, half_width, spread).is_beyond is beyond
