"""The kept entries of one row, in one form for both modes of a cache."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.read.cache import Cache
from teacher_cache.targets import estimate

MOST_CERTAIN = 48
"""Largest logits kept one by one; `fold` adds the certain entries behind them to the log-mass."""
BISECTIONS = 40


@dataclass(frozen=True)
class RowEntries:
    """ids and values (T, K) and log_mass (T, J) of a row, and the layout that `estimate` needs to read them."""

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    layout: TargetLayout

    def at(self, positions: Tensor | slice) -> "RowEntries":
        return replace(self, ids=self.ids[positions], values=self.values[positions], log_mass=self.log_mass[positions])


def row_entries(cache: Cache, row: int) -> RowEntries:
    """A row's kept entries; in exact mode the whole vocabulary, largest first, with no mass behind it."""
    layout = cache.layout
    if layout.mode == "sparse":
        stored = cache.rows([row])
        assert stored.ids is not None
        assert stored.values is not None
        assert stored.log_mass is not None
        ids = torch.from_numpy(stored.ids[0].astype("int64"))
        return RowEntries(ids, torch.from_numpy(stored.values[0]), torch.from_numpy(stored.log_mass[0]), layout)
    found = cache.targets([row], temperature=max(layout.node_temperatures))
    nothing = torch.full((found.ids.shape[1], len(layout.node_temperatures)), LOG_MASS_FLOOR)
    whole = layout.model_copy(update={"top_k": found.ids.shape[-1], "samples": 0})
    return RowEntries(torch.from_numpy(found.ids[0]), torch.from_numpy(found.values[0]), nothing, whole)


def fold(entries: RowEntries, top_k: int = MOST_CERTAIN) -> RowEntries:
    """The same distribution with at most `top_k` certain entries: the others join the log-mass, sampled ones stay."""
    layout = entries.layout
    if layout.top_k <= top_k:
        return entries
    behind = entries.values[:, top_k : layout.top_k] - entries.values[:, :1]
    masses = torch.stack([torch.logsumexp(behind / t, dim=-1) for t in layout.node_temperatures], dim=-1)
    stays = [*range(top_k), *range(layout.top_k, entries.ids.shape[-1])]
    return RowEntries(
        entries.ids[:, stays],
        entries.values[:, stays],
        torch.logaddexp(entries.log_mass, masses),
        layout.model_copy(update={"top_k": top_k}),
    )


def next_logits(entries: RowEntries, following: Tensor) -> Tensor:
    """Logit of the token that follows, relative to the largest, (T,); nan where it was not kept."""
    found = (entries.ids == following[:, None]) & (entries.values > -torch.inf)
    relative = estimate.relative_logits(entries.values).masked_fill(~found, -torch.inf).amax(-1)
    return relative.masked_fill(~found.any(-1), torch.nan)


def highest_unkept_logit(entries: RowEntries) -> Tensor:
    """The highest logit that a token that was not kept can have, relative to the largest logit, (T,).

    It is no higher than the top_k. And since the token was not drawn, drawing it was not certain: n r < 1, where r
    rises with the logit. The bound is the logit at which n r = 1, found by bisection.
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
