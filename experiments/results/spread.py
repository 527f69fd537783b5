"""Means, spreads, and what a difference shows: pure functions of numbers, one per seed."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 %, by number of pairs."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; None with one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Mapping[int, float]) -> "Spread":
        found = list(values.values())
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)

    def words(self, digits: int) -> str:
        """`mean ± deviation`."""
        return f"{self.mean:.{digits}f}" + ("" if self.deviation is None else f" ± {self.deviation:.{digits}f}")


@dataclass(frozen=True)
class Difference:
    """Of one variant from another, by pairs of the same seed: mean, half width of its 95 % interval (None with one
    pair), and the larger of the two spreads.
    """

    mean: float
    half_width: float | None
    spread: float | None

    @property
    def is_beyond(self) -> bool:
        """Whether it exceeds the seeds' spread and its interval leaves out 0."""
        if self.half_width is None or self.spread is None:
            return False
        return abs(self.mean) > max(self.half_width, self.spread)


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds both have; None where there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    pairs = [ours[seed] - theirs[seed] for seed in seeds]
    mean = statistics.fmean(pairs)
    if len(pairs) < 2:
        return Difference(mean, None, None)
    quantile = T_QUANTILES.get(len(pairs), T_QUANTILES[max(T_QUANTILES)])
    half_width = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
    spread = max(statistics.stdev(side[seed] for seed in seeds) for side in (ours, theirs))
    return Difference(mean, half_width, spread)
