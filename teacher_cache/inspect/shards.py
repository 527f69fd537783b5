"""Figures of each shard from its commit record, and shards that stand out: often a sign of bad text."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format.commits import CommitRecord
from teacher_cache.read.cache import Cache

OUTLIER_DEVIATIONS = 5.0
DEVIATION_PER_MAD = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""
FEWEST_SHARDS = 5
"""With fewer shards none can be called unusual."""
LEAST_SPREAD = 1e-3
"""As a share of the median: among shards that almost agree, a rounding difference is no outlier."""


@dataclass(frozen=True)
class ShardFigure:
    """One figure over the committed shards: its mean in each, their median, robust deviation and outliers."""

    name: str
    form: str
    """Format string for a value, with its unit."""
    values: dict[int, float]
    median: float
    deviation: float
    outliers: list[int]

    def words(self, value: float) -> str:
        return self.form.format(value)


class ShardRange(TypedDict):
    """A `ShardFigure` as a JSON value: extremes in place of all values, outliers by shard."""

    form: str
    median: float
    deviation: float
    lowest: float
    highest: float
    outliers: dict[str, float]


_FORMS: dict[str, tuple[str, str]] = {
    "cross_entropy": ("cross-entropy of the text", "{:.3f} nats"),
    "agreement": ("first choice is next", "{:.1%}"),
    "entries": ("entries per position", "{:.1f}"),
    "retained_mass@1": ("retained mass at T = 1", "{:.2%}"),
    "retained_mass@2": ("retained mass at T = 2", "{:.2%}"),
    "entropy@1": ("teacher entropy at T = 1", "{:.3f} nats"),
}


def shard_figures(cache: Cache) -> list[ShardFigure]:
    """The figures that all commit records have; none where no shard with counted positions is committed."""
    commits = {shard: commit for shard, commit in sorted(cache.commits.items()) if commit.positions}
    if not commits:
        return []
    known = set.intersection(*(set(commit.statistics) for commit in commits.values()))
    figures = [
        _figure(words, form, commits, partial(_mean, name))
        for name, (words, form) in _FORMS.items()
        if name in known and not (cache.manifest.targets.mode == "exact" and name == "entries")
    ]
    length = cache.manifest.seq_len
    share = _figure("positions counted", "{:.1%}", commits, lambda commit: commit.positions / (commit.rows * length))
    # A short last shard spreads the fixed bytes of an object over fewer tokens, which says nothing about its text.
    whole = {s: commit for s, commit in commits.items() if commit.rows == cache.manifest.rows.rows_per_shard}
    return [*figures, share, _figure("bytes per token", "{:.1f}", whole or commits, _bytes_per_token)]


def _mean(statistic: str, commit: CommitRecord) -> float:
    return commit.statistics[statistic] / commit.positions


def _bytes_per_token(commit: CommitRecord) -> float:
    return sum(stored.bytes for stored in commit.objects.values()) / commit.positions


def _figure(
    name: str, form: str, commits: dict[int, CommitRecord], measure: Callable[[CommitRecord], float]
) -> ShardFigure:
    values = {shard: measure(commit) for shard, commit in commits.items()}
    positions = np.array([commit.positions for commit in commits.values()], dtype=np.float64)
    median, deviation, unusual = find_outliers(np.array(list(values.values())), positions)
    return ShardFigure(name, form, values, median, deviation, [list(commits)[at] for at in unusual])


def find_outliers(values: NDArray[np.float64], positions: NDArray[np.float64]) -> tuple[float, float, list[int]]:
    """Median, robust standard deviation, and the indices of values far from the median; arrays (n,).

    Far is 5 deviations, and more for a shard of fewer positions than usual: the noise of a mean falls with the square
    root of their number.
    """
    median = float(np.median(values))
    deviation = DEVIATION_PER_MAD * float(np.median(np.abs(values - median)))
    allowed = OUTLIER_DEVIATIONS * max(deviation, LEAST_SPREAD * abs(median))
    noisier = np.sqrt(np.maximum(1.0, np.median(positions) / positions))
    far = np.abs(values - median) > allowed * noisier
    return median, deviation, np.flatnonzero(far).tolist() if len(values) >= FEWEST_SHARDS else []


def outlier_sentences(cache: Cache, figures: list[ShardFigure]) -> list[str]:
    """One sentence for each shard and figure that stands out."""
    return [
        f"shard {shard} ({_row_words(cache, shard)}): {figure.name} {figure.words(figure.values[shard])}, where shards "
        f"usually have {figure.words(figure.median)} ± {figure.words(figure.deviation)}"
        for figure in figures
        for shard in figure.outliers
    ]


def _row_words(cache: Cache, shard: int) -> str:
    rows = cache.manifest.shard_rows(shard)
    return f"rows {rows[0]} to {rows[-1]}" if len(rows) > 1 else f"row {rows[0]}"


def shards_to_json(figures: list[ShardFigure]) -> dict[str, ShardRange]:
    """Each figure as a JSON value, by its name."""
    return {
        figure.name: {
            "form": figure.form,
            "median": figure.median,
            "deviation": figure.deviation,
            "lowest": min(figure.values.values()),
            "highest": max(figure.values.values()),
            "outliers": {str(shard): figure.values[shard] for shard in figure.outliers},
        }
        for figure in figures
    }
