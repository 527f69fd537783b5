"""The sums over a shard's targets that its commit record keeps; those of all shards add up."""

import torch
from torch import Tensor

from teacher_cache.format.commits import REPORTED_TEMPERATURES
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets import estimate
from teacher_cache.targets.keep import KeptTargets, join

GPU_POSITIONS = 65_536
"""Positions that a GPU sums at once: a sum takes a few dozen launches however many positions it has."""


class ShardStatistics:
    """Sums over the counted positions of a shard, computed from the targets that are kept.

    Keys: `cross_entropy` of the next token (nats, temperature 1); `agreement`, positions at which the teacher's most
    likely token is the next token; `entries`, kept logits, and `entries_squared`; `retained_mass@T`, `entropy@T` (nats)
    and `mass_variance@T` at each reported temperature T that the targets cover.
    """

    def __init__(self, layout: TargetLayout) -> None:
        self._layout = layout
        low, high = min(layout.node_temperatures), max(layout.node_temperatures)
        self._temperatures = [t for t in REPORTED_TEMPERATURES if low <= t <= high]
        self._sums: dict[str, Tensor] = {}
        self._waiting: list[tuple[KeptTargets, Tensor]] = []

    @property
    def sums(self) -> dict[str, float]:
        """The sums so far. Reading them waits for the device; `add` and `settle` do not."""
        self.settle()
        if not self._sums:
            return {}
        return dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist(), strict=True))

    def settle(self) -> None:
        """Sum what has been added and not summed yet; a GPU queues it behind its other work."""
        if self._waiting:
            several, labels = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self._add(join(several), torch.cat(labels))

    def add(self, kept: KeptTargets, labels: Tensor) -> None:
        """Add n positions; labels (n,) are their next tokens."""
        self._waiting.append((kept, labels))
        if not labels.is_cuda or sum(len(waiting) for _, waiting in self._waiting) >= GPU_POSITIONS:
            self.settle()

    def _add(self, kept: KeptTargets, labels: Tensor) -> None:
        values, log_mass, layout = kept.values, kept.log_mass, self._layout
        entries = (values > -torch.inf).sum(-1).double()
        self._sum("agreement", (kept.ids[:, 0] == labels).double())
        self._sum("entries", entries)
        self._sum("entries_squared", entries.square())
        if 1.0 in self._temperatures:
            log_z = estimate.log_partition(values, log_mass, layout, 1.0)
            self._sum("cross_entropy", log_z - (kept.label_logits - values[:, 0]))
        sampled = layout.mode == "sparse"
        included = estimate.inclusion_probabilities(values, log_mass, layout) if sampled else None
        for temperature in self._temperatures:
            self._sum(f"entropy@{temperature:g}", estimate.entropy(values, log_mass, layout, temperature))
            if included is not None:
                p = torch.exp(estimate.log_probabilities(values, log_mass, layout, temperature))
                self._sum(f"retained_mass@{temperature:g}", p.sum(-1).clamp_(max=1.0))
                self._sum(f"mass_variance@{temperature:g}", estimate.mass_variance(p, included))

    def _sum(self, name: str, per_position: Tensor) -> None:
        total = per_position.double().sum()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
