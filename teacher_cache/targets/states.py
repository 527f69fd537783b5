"""Which positions and channels of the averaged hidden states a row keeps: drawn, so that sums over them have no bias.

A sum over all channels, such as a squared error, is estimated by the sum over the drawn ones, each divided by its
probability. Half of the probability is spread evenly, half by the channels' sizes: a few channels of massive activation
hold most of a raw squared error, and drawing them as seldom as the others would leave noise many times the sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.format.manifest import OFFSETS, ChannelSampling, HiddenLayout, Manifest
from teacher_cache.targets.randomness import Purpose, rounding_keys, row_bytes

CPU = torch.device("cpu")

SHARE_BY_SIZE = 0.5

SETS, PHASES, KEYS = "hidden/sets", "hidden/phases", "hidden/keys"
"""Names beside those of the stored arrays, for what follows from a row's random numbers."""

SMALLEST_SHARE = 0.01
"""A channel's size is raised to at least this share of the median: dividing by less, quiet channels would decide F."""


def channel_sampling(rms: NDArray[np.float64], drawn: int) -> ChannelSampling:
    """How `drawn` of the channels whose RMS is rms (d,) are drawn at each position.

    A channel that would be drawn more than once is certain, and the rest share what is left. Raises `ValueError` where
    a channel would be in none of the `OFFSETS` sets, see `fewest_channels`.
    """
    rms = np.maximum(rms, SMALLEST_SHARE * np.median(rms)) if rms.any() else np.ones_like(rms)
    share = (1 - SHARE_BY_SIZE) / len(rms) + SHARE_BY_SIZE * rms / rms.sum()
    certain = np.zeros(len(rms), bool)
    while True:
        chance = np.where(certain, 1.0, share * (drawn - certain.sum()) / share[~certain].sum())
        if not (chance > 1).any():
            break
        certain |= chance > 1
    return ChannelSampling(
        drawn=drawn,
        counts=tuple(_whole_numbers(chance * OFFSETS, OFFSETS * drawn)),
        exponents=tuple(int(exponent) for exponent in np.round(np.log2(rms))),
    )


def fewest_channels(width: int) -> int:
    """The fewest channels to draw of `width`, so that each is in at least one set."""
    return -(-width // OFFSETS) * 2


def _whole_numbers(wanted: NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers near `wanted`, from 1 to `OFFSETS`, that sum to `total`: the largest remainders are rounded up."""
    counts = np.clip(np.floor(wanted), 1, OFFSETS).astype(int)
    order = np.argsort(counts - wanted, kind="stable")
    room = [index for index in order if counts[index] < OFFSETS]
    missing = total - int(counts.sum())
    if missing < 0 or missing > len(room):
        raise ValueError(f"{total // OFFSETS} channels cannot be drawn of {len(wanted)}")
    counts[room[:missing]] += 1
    return [int(count) for count in counts]


@dataclass(frozen=True)
class ChannelSets:
    """The sets of channels that positions draw from."""

    members: NDArray[np.int64]
    """(OFFSETS, k) channels of each set, rising."""
    weights: NDArray[np.float32]
    """(d,) one over a channel's probability."""
    sizes: NDArray[np.float32]
    """(d,) what a channel's values are divided by before they are rounded, powers of two near their RMS."""


@lru_cache(maxsize=8)
def channel_sets(sampling: ChannelSampling) -> ChannelSets:
    """The sets: through the list of all channels, each repeated as often as it is drawn, in steps of `OFFSETS`."""
    counts = np.array(sampling.counts)
    members = np.repeat(np.arange(len(counts)), counts).reshape(sampling.drawn, OFFSETS).T
    exponents = np.array(sampling.exponents, np.float64)
    return ChannelSets(
        np.ascontiguousarray(members), (OFFSETS / counts).astype(np.float32), np.exp2(exponents).astype(np.float32)
    )


def drawn_of_rows(manifest: Manifest, rows: Iterable[int]) -> dict[str, NDArray[np.generic]]:
    """`SETS`, `PHASES` and `KEYS` of n rows, each only where channels or positions are drawn, or states rounded."""
    rows, hidden = list(rows), manifest.hidden
    found: dict[str, NDArray[np.generic]] = {}
    if hidden.mean != "none" and hidden.channels is not None:
        found[SETS] = drawn_sets(manifest, rows)
    if hidden.mean != "none" and has_phases(manifest):
        found[PHASES] = drawn_phases(manifest, rows)
    if hidden.mean not in ("none", "lossless") and manifest.format_version > 1:
        found[KEYS] = rounding_keys(manifest.targets.seed, rows, CPU).numpy()
    return found


def drawn_sets(manifest: Manifest, rows: Iterable[int]) -> NDArray[np.uint8]:
    """The set of channels (n, P) of each position that n rows keep: the row's random bytes behind the first number."""
    kept = manifest.hidden.positions(manifest.seq_len)
    return np.stack([row_bytes(manifest.targets.seed, row, Purpose.STATES, 8 + kept)[8:] for row in rows])


def drawn_phases(manifest: Manifest, rows: Iterable[int]) -> NDArray[np.int64]:
    """The first position (n,) that each of n rows keeps: the row's first random number, modulo the stride."""
    if not has_phases(manifest):
        return np.zeros(len(list(rows)), np.int64)
    first = np.stack([row_bytes(manifest.targets.seed, row, Purpose.STATES, 8) for row in rows]).view("<u8")[:, 0]
    return (first % np.uint64(manifest.hidden.stride)).astype(np.int64)


def has_phases(manifest: Manifest) -> bool:
    """Whether a row's first kept position is drawn; in format version 1 it is position 0."""
    return manifest.hidden.stride > 1 and manifest.format_version > 1


def kept_positions(hidden: HiddenLayout, seq_len: int, phases: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions (n, P) of rows with these phases (n,); `seq_len` and above are unused places."""
    return phases[..., None] + hidden.stride * np.arange(hidden.positions(seq_len))
