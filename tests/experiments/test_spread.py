"""What may be said of a difference, and where gradient norms are compared."""

import numpy as np
import pytest

from experiments.results.spread import Difference, Spread, difference
from experiments.results.tables import verdict
from experiments.train.gradient_norms import common_levels, norm_at, smoothed


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


def test_verdicts_say_what_the_numbers_say() -> None:
    sure, unsure, one = Difference(-0.3, 0.1, 0.1), Difference(0.1, 0.2, 0.1), Difference(0.3, None, None)
    assert verdict({"cross_entropy": sure, "kl": unsure}) == "CE better"
    assert verdict({"cross_entropy": unsure, "kl": Difference(0.3, 0.1, 0.1)}) == "KL worse"
    assert verdict({"agreement": sure, "calibration_error": sure}) == "agreement worse, ECE better"
    assert verdict({"cross_entropy": unsure, "kl": unsure}) == "within the spread"
    assert verdict({"cross_entropy": one, "kl": one}) == "one seed"


def test_norms_are_taken_at_equal_loss() -> None:
    loss = np.linspace(8, 4, 41)
    curve = smoothed(np.stack([loss, 10 * loss], axis=1), 3)
    assert len(curve) == 39
    slower = np.linspace(9, 5, 41)
    levels = common_levels([curve[:, 0], slower])
    assert levels == pytest.approx([7.175, 6.45, 5.725])
    assert norm_at(curve, levels[1]) == pytest.approx(64.5, abs=1.0)
