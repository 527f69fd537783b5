"""Kept entries and log-mass as chunks hold them from version 2 on.

Four in ten of a position's places are unused with the default targets. In places of their own each would cost a bit in
the ids and another in the values, so the used ones lie together and a count says how many a position has. Log-masses at
neighbouring nodes resemble each other, so they are stored as whole steps, and of these second differences.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from teacher_cache.format.arrays import ENTRIES, POSITION_NUMBERS
from teacher_cache.format.manifest import Manifest

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
Steps = NDArray[np.int32]


def packed(manifest: Manifest, arrays: Arrays) -> Arrays:
    """The arrays of `array_specs` from those of `row_specs`; rows on axis 0, the first one begins a chunk."""
    if not manifest.is_packed:
        return arrays
    ids, values, log_mass = (arrays[name] for name in ENTRIES)
    used = (values != -np.inf) & (arrays["loss_mask"] != 0)[..., None]
    steps = np.round(log_mass.astype(np.float64) / manifest.targets.log_mass_step).astype(np.int32)
    numbers = np.concatenate([used.sum(-1, dtype=np.int32, keepdims=True), second_differences(steps)], axis=-1)
    together = [np.zeros_like(array) for array in (ids, values, numbers)]
    for chunk in _chunks(manifest, len(ids)):
        columns = np.moveaxis(numbers[chunk], -1, 0)
        for found, kept in zip(together, (ids[chunk][used[chunk]], values[chunk][used[chunk]], columns), strict=True):
            found[chunk].reshape(-1)[: kept.size] = kept.reshape(-1)
    return {**arrays, **dict(zip((*ENTRIES[:2], POSITION_NUMBERS), together, strict=True))}


def unpacked(manifest: Manifest, ids: Array, values: Array, numbers: Steps) -> dict[str, Array]:
    """The arrays `ENTRIES` of whole chunks, from the ids, values and numbers of positions that are stored.

    A position without entries, which loss_mask leaves out, holds zeros. Raises `ValueError` where a position has
    more entries than places.
    """
    places, nodes = ids.shape[-1], numbers.shape[-1] - 1
    small = np.min_scalar_type(places)
    all_ids, all_values = np.zeros_like(ids), np.full_like(values, -np.inf)
    log_mass = np.empty((*numbers.shape[:-1], nodes), np.float32)
    for chunk in _chunks(manifest, len(ids)):
        counts, *differences = numbers[chunk].reshape(1 + nodes, *numbers[chunk].shape[:-1])
        if not 0 <= counts.min() <= counts.max() <= places:
            raise ValueError(f"a position has {counts.min()} to {counts.max()} entries in {places} places")
        used = counts.astype(small)[..., None] > np.arange(places, dtype=small)
        kept = slice(counts.sum())
        all_ids[chunk][used] = ids[chunk].reshape(-1)[kept]
        all_values[chunk][used] = values[chunk].reshape(-1)[kept]
        all_values[chunk][counts == 0] = 0
        log_mass[chunk] = np.stack(summed_twice(differences), axis=-1)
    log_mass *= np.float32(manifest.targets.log_mass_step)
    return dict(zip(ENTRIES, (all_ids, all_values, log_mass), strict=True))


def second_differences(steps: Steps) -> Steps:
    """The first number of the last axis, the first difference, and second differences from then on."""
    found = np.diff(steps, axis=-1, prepend=0)
    found[..., 2:] -= found[..., 1:-1].copy()
    return found


def summed_twice(differences: Sequence[Steps]) -> list[Steps]:
    """The columns of numbers whose `second_differences` are the columns given."""
    columns, slope = list(differences[:1]), np.zeros_like(differences[0])
    for difference in differences[1:]:
        slope = slope + difference
        columns.append(columns[-1] + slope)
    return columns


def _chunks(manifest: Manifest, rows: int) -> Iterator[slice]:
    """The chunks of so many rows, of which the first begins one."""
    for first in range(0, rows, manifest.rows.rows_per_chunk):
        yield slice(first, first + manifest.rows.rows_per_chunk)
