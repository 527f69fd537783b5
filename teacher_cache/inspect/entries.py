"""What is kept of one row in one form, whichever mode the cache is in, for a person to look at."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.read.cache import Cache
from teacher_cache.targets import estimate

MOST_CERTAIN = 48
"""Largest logits kept singly from here on; those behind them are summed into the log-mass."""
BISECTIONS = 40


@dataclass(frozen=True)
class Entries:
    """ids and values (T, K), log_mass (T, J) of a row, and the layout by which `estimate` reads them."""

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    layout: TargetLayout

    def at(self, positions: Tensor | slice) -> "Entries":
        """Some positions only."""
        return replace(self, ids=self.ids[positions], values=self.values[positions], log_mass=self.log_mass[positions])


def row_entries(cache: Cache, row: int) -> Entries:
    """A row's kept entries; in exact mode those of the whole vocabulary, largest first and no mass behind them."""
    layout = cache.layout
    if layout.mode == "sparse":
        stored = cache.rows([row])
        assert stored.ids is not None
        assert stored.values is not None
        assert stored.log_mass is not None
        ids = torch.from_numpy(stored.ids[0].astype("int64"))
        return Entries(ids, torch.from_numpy(stored.values[0]), torch.from_numpy(stored.log_mass[0]), layout)
    found = cache.targets([row], temperature=max(layout.node_temperatures))
    nothing = torch.full((found.ids.shape[1], len(layout.node_temperatures)), LOG_MASS_FLOOR)
    whole = layout.model_copy(update={"top_k": found.ids.shape[-1], "samples": 0})
    return Entries(torch.from_numpy(found.ids[0]), torch.from_numpy(found.values[0]), nothing, whole)


def fold(entries: Entries, top_k: int = MOST_CERTAIN) -> Entries:
    """The same distribution with fewer certain entries: the others join the log-mass. Sampled ones stay."""
    layout = entries.layout
    if layout.top_k <= top_k:
        return entries
    behind = entries.values[:, top_k : layout.top_k] - entries.values[:, :1]
    masses = torch.stack([torch.logsumexp(behind / t, dim=-1) for t in layout.node_temperatures], dim=-1)
    stays = [*range(top_k), *range(layout.top_k, entries.ids.shape[-1])]
    return Entries(
        entries.ids[:, stays],
        entries.values[:, stays],
        torch.logaddexp(entries.log_mass, masses),
        layout.model_copy(update={"top_k": top_k}),
    )


def next_logits(entries: Entries, following: Tensor) -> Tensor:
    """Logit of the token that follows, relative to the largest, (T,); nan where it was not kept."""
    found = (entries.ids == following[:, None]) & (entries.values > -torch.inf)
    relative = estimate.relative_logits(entries.values).masked_fill(~found, -torch.inf).amax(-1)
    return relative.masked_fill(~found.any(-1), torch.nan)


def highest_unkept_logit(entries: Entries) -> Tensor:
    """What a token that was not kept can have at most, relative to the largest logit, (T,).

    It is behind the top_k, and it was not drawn, so it was not certain to be drawn: n r < 1, and r rises with the
    logit.
    """
    layout = entries.layout
    high = entries.values[:, layout.top_k - 1] - entries.values[:, 0]
    if not layout.samples:
        return high
    scales = estimate.proposal_scales(entries.values, entries.log_mass, layout)

    def is_certain(logit: Tensor) -> Tensor:
        return torch.stack([scale * torch.exp(logit / t) for scale, t in scales]).sum(0) >= 1

    low, upper = torch.full_like(high, LOG_MASS_FLOOR), high.clone()
    for _ in range(BISECTIONS):
        middle = (low + upper) / 2
        certain = is_certain(middle)
        low, upper = torch.where(certain, low, middle), torch.where(certain, middle, upper)
    return torch.where(is_certain(high), upper, high)
