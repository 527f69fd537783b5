"""Retained mass and entropy at every temperature of the cached range, over a sample of positions."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.inspect.entries import RowEntries, fold, row_entries
from teacher_cache.read.cache import Cache
from teacher_cache.targets import estimate

GRID_POINTS = 41
SAMPLE_POSITIONS = 1024
MOST_ROWS = 16


@dataclass(frozen=True)
class Curve:
    """A measure at each temperature of the grid, (n,): mean, 10 % and 90 % quantile over the sampled positions."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Curves over `temperatures` (n,); `retained_mass` is None in exact mode, where it is 1 everywhere."""

    temperatures: NDArray[np.float64]
    positions: int
    rows: int
    entropy: Curve
    retained_mass: Curve | None


def temperature_curves(cache: Cache) -> Curves | None:
    """Curves over a sample of counted positions; None where no committed row has one."""
    sample = [part for row in spread_rows(cache, MOST_ROWS) if len((part := _counted(cache, row)).values)]
    if not sample:
        return None
    nodes = cache.layout.node_temperatures
    grid = np.linspace(min(nodes), max(nodes), GRID_POINTS)
    masses = _curve(sample, "retained_mass", grid) if cache.layout.mode == "sparse" else None
    positions = sum(len(part.values) for part in sample)
    return Curves(grid, positions, len(sample), _curve(sample, "entropy", grid), masses)


def spread_rows(cache: Cache, count: int) -> list[int]:
    """Up to `count` committed rows, evenly spread over the committed ones."""
    shards = cache.shards
    ends = np.cumsum([len(rows) for rows in shards])
    total = int(ends[-1]) if shards else 0
    chosen = np.unique(np.linspace(0, max(0, total - 1), min(count, total)).astype(int))
    found = []
    for place in chosen:
        shard = int(np.searchsorted(ends, place, side="right"))
        found.append(shards[shard][int(place) - int(ends[shard] - len(shards[shard]))])
    return found


def _counted(cache: Cache, row: int) -> RowEntries:
    """A row's share of the sample; in exact mode folded, because there a row has the whole vocabulary as entries."""
    places = torch.from_numpy(np.flatnonzero(cache[row].loss_mask))
    share = -(-SAMPLE_POSITIONS // MOST_ROWS)
    if len(places) > share:
        places = places[torch.linspace(0, len(places) - 1, share).long()]
    entries = row_entries(cache, row).at(places)
    return fold(entries) if entries.layout.mode == "exact" else entries


def _curve(sample: list[RowEntries], measure: str, grid: NDArray[np.float64]) -> Curve:
    function = getattr(estimate, measure)
    values = np.stack(
        [np.concatenate([function(e.values, e.log_mass, e.layout, float(t)).numpy() for e in sample]) for t in grid]
    ).astype(np.float64)
    low, high = np.quantile(values, (0.1, 0.9), axis=1)
    return Curve(values.mean(axis=1), low, high)
