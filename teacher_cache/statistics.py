"""What a shard's commit record says about its targets, and how shards add up."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache import estimate
from teacher_cache.format import CommitRecord, Manifest

REPORTED_TEMPERATURES = (1.0, 1.25, 1.5, 2.0)


def shard_statistics(
    manifest: Manifest, arrays: Mapping[str, NDArray[Any]], label_logits: NDArray[np.float32]
) -> dict[str, float]:
    """Sums over the counted positions of a shard, worked out from the values as stored.

    `label_logits` (rows, T) are the teacher's logits of the next tokens. Keys: `cross_entropy` (nats, T = 1),
    `entropy@T`, `retained_mass@T`, `agreement` (the first choice is the next token).
    """
    counted = arrays["loss_mask"]
    values = arrays["logits/values"][counted].astype(np.float32)
    log_mass, nodes = arrays["logits/log_mass"][counted], manifest.node_temperatures
    labels = arrays["tokens"][:, 1:][counted]
    log_z = estimate.log_partition(values, log_mass, nodes, 1.0)
    sums = {
        "cross_entropy": log_z - (label_logits[counted] - values[:, 0]),
        "agreement": arrays["logits/ids"][counted][:, 0] == labels,
    }
    for temperature in REPORTED_TEMPERATURES:
        sums[f"retained_mass@{temperature:g}"] = estimate.retained_mass(values, log_mass, nodes, temperature)
        sums[f"entropy@{temperature:g}"] = estimate.entropy(values, log_mass, nodes, temperature)
    return {name: float(per_position.sum(dtype=np.float64)) for name, per_position in sums.items()}


def mean_statistics(commits: Iterable[CommitRecord]) -> dict[str, float]:
    """Means over every counted position of the shards given; empty when there is none."""
    totals: dict[str, float] = {}
    positions = 0
    for commit in commits:
        positions += commit.positions
        for name, value in commit.statistics.items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: total / positions for name, total in totals.items()} if positions else {}
