"""What charts share: coordinates of values, and round numbers for axes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to coordinates [start, end]; where low = high, to the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def svg_points(pairs: Iterable[tuple[float, float]], x: Scale, y: Scale) -> str:
    """The `points` attribute of a polyline or polygon through these pairs."""
    return " ".join(f"{x(a)},{y(b)}" for a, b in pairs)


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Even ticks from at or below `low` to at or above `high`; their step is 1, 2 or 5 times a power of ten.

    The step is the smallest of these of which at most `most` fit between `low` and `high`.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{step * number:.10g}") for number in range(first, max(last, first + 1) + 1)]
