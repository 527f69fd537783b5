"""Logits of some positions → what a row keeps of them: top_k entries, sampled entries, log-mass of the rest."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from teacher_cache.estimate import proposal_scales
from teacher_cache.format import LOG_MASS_FLOOR, LOG_MASS_STEP, TargetLayout

BLOCK = 128
"""Tokens whose inclusion probabilities are summed together: sampling looks into the blocks it hits only."""

SLICE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Logits PyTorch works on at once, by device: 4 MiB of float32, whose many passes then stay in a processor's cache;
on a GPU 256 MiB, enough to keep it busy."""


@dataclass(frozen=True)
class KeptTargets:
    """What is kept of n distributions.

    ids (n, K) int64 and values (n, K) float32: the top_k in rank order, then the sampled entries in rank order,
    unused places id 0 and -inf; log_mass (n, J) float32 at its stored precision,
    `A(beta_j) = log sum_{i outside the top_k} exp(beta_j (z_i - z_max))`; label_logits (n,) float32.
    """

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    label_logits: Tensor


def keep_targets(logits: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """What is kept of logits (n, V) over the real vocabulary.

    labels (n,) int64; uniform (n,) float64 in [0, 1), the offsets of the systematic samples. Logits are rounded to
    their stored precision first, so that what is kept is an unbiased account of what could be stored; bfloat16 ones
    are at it already (below 6e-5, where float16 is coarser, no logit is told from 0). On a GPU with Triton its
    kernels do the work; they may draw other tokens where a running sum rounds to the other side of a mark.
    """
    stored = logits if logits.dtype == torch.bfloat16 else logits.to(getattr(torch, layout.value_dtype))
    keep = keep_by_kernels if _kernels_serve(stored, layout) else keep_by_torch
    return keep(stored, labels, layout, uniform)


def _kernels_serve(stored: Tensor, layout: TargetLayout) -> bool:
    if not stored.is_cuda or not _has_triton():
        return False
    from teacher_cache import targets_triton

    return targets_triton.serves(layout)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def keep_by_kernels(stored: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """`keep_targets` of logits at their stored precision, on a GPU; among equal logits the lowest id comes first."""
    from teacher_cache import targets_triton

    stored = stored if stored.stride(1) == 1 else stored.contiguous()
    top = targets_triton.take_top(stored, layout)
    log_mass = round_log_mass(top.log_mass)
    if layout.samples:
        targets_triton.draw(stored, top, log_mass, layout, uniform)
    return KeptTargets(top.ids, top.values, log_mass, _label_logits(stored, labels))


def keep_by_torch(stored: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """`keep_targets` of logits at their stored precision, by PyTorch alone: the kernels' twin."""
    rows = max(1, SLICE_ELEMENTS.get(stored.device.type, SLICE_ELEMENTS["cpu"]) // stored.shape[1])
    space = _Workspace.of(min(rows, len(stored)), stored, layout)
    slices = zip(*(torch.split(whole, rows) for whole in (stored, labels, uniform)), strict=True)
    parts = [_keep(some, label, offset, layout, space) for some, label, offset in slices]
    return join(parts)


def join(parts: Sequence[KeptTargets]) -> KeptTargets:
    """Targets of several runs of positions as those of one."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return KeptTargets(*(torch.cat(column) for column in columns))


def _label_logits(stored: Tensor, labels: Tensor) -> Tensor:
    return stored.gather(1, labels[:, None]).squeeze(1).float()


@dataclass(frozen=True)
class _Workspace:
    """Memory for a slice, used over and over: a fresh page costs more than the arithmetic done on it.

    rest and step (rows, V), and a power of it for each node; the vocabulary is filled up to whole blocks.
    """

    rest: Tensor
    step: Tensor
    powers: list[Tensor]

    @classmethod
    def of(cls, rows: int, logits: Tensor, layout: TargetLayout) -> "_Workspace":
        width = -(-logits.shape[1] // BLOCK) * BLOCK
        rest, step, *powers = torch.empty(
            2 + len(layout.node_temperatures), rows, width, dtype=torch.float32, device=logits.device
        )
        rest[:, logits.shape[1] :] = -torch.inf
        return cls(rest, step, powers)

    def first(self, rows: int) -> "_Workspace":
        """The part a shorter slice needs."""
        return _Workspace(self.rest[:rows], self.step[:rows], [power[:rows] for power in self.powers])


def _keep(stored: Tensor, labels: Tensor, uniform: Tensor, layout: TargetLayout, whole: _Workspace) -> KeptTargets:
    space = whole.first(len(stored))
    rest = space.rest[:, : stored.shape[1]].copy_(stored)
    values, ids = rest.topk(layout.top_k, dim=-1)
    rest.sub_(values[:, :1]).scatter_(1, ids, -torch.inf)
    _fill_powers(space, layout)
    log_mass = round_log_mass(torch.stack([power.sum(-1) for power in space.powers], dim=-1).log_())
    if layout.samples:
        sampled_ids, used = _sample(space, values, log_mass, layout, uniform)
        sampled_ids.masked_fill_(~used, 0)
        sampled = stored.gather(1, sampled_ids).float().masked_fill_(~used, -torch.inf)
        sampled, order = sampled.sort(dim=-1, descending=True, stable=True)
        ids = torch.cat([ids, sampled_ids.gather(1, order)], dim=1)
        values = torch.cat([values, sampled], dim=1)
    return KeptTargets(ids, values, log_mass, _label_logits(stored, labels))


def _fill_powers(space: _Workspace, layout: TargetLayout) -> None:
    """`exp(beta_j rest)` at each node: two exponentials, then products, for nodes are equally spaced in beta."""
    betas = [1 / t for t in layout.node_temperatures]
    torch.mul(space.rest, betas[0], out=space.powers[0]).exp_()
    torch.mul(space.rest, betas[1] - betas[0], out=space.step).exp_()
    for before, power in pairwise(space.powers):
        torch.mul(before, space.step, out=power)


def round_log_mass(log_mass: Tensor) -> Tensor:
    """Log-masses at their stored precision: multiples of `LOG_MASS_STEP`, and the floor for no mass at all."""
    return (log_mass / LOG_MASS_STEP).round_().mul_(LOG_MASS_STEP).clamp_(min=LOG_MASS_FLOOR)


def _sample(
    space: _Workspace, values: Tensor, log_mass: Tensor, layout: TargetLayout, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Sampled ids (n, samples) and whether each place is used."""
    nodes = dict(zip(layout.node_temperatures, space.powers, strict=True))
    rate = space.step
    for part, (scale, temperature) in enumerate(proposal_scales(values, log_mass, layout)):
        power = nodes[temperature] if temperature in nodes else torch.exp(space.rest / temperature)
        if part:
            rate.addcmul_(power, scale[:, None])
        else:
            torch.mul(power, scale[:, None], out=rate)
    return systematic_sample(rate.clamp_(max=1.0), uniform, layout.samples)


def systematic_sample(inclusion: Tensor, uniform: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Draw each token i of (n, V) with probability inclusion[i], V a multiple of `BLOCK`, at most `samples` a row.

    One uniform offset runs through the cumulative sum in steps of 1, so the number drawn is the sum of the
    probabilities rounded up or down. Returns ids (n, samples) and whether each place is used. The sum is taken
    over blocks, in float64 between them, and inside the blocks that are hit.
    """
    blocks = inclusion.view(len(inclusion), -1, BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    marks = torch.arange(1, samples + 1, device=inclusion.device) - uniform[:, None]
    block = torch.searchsorted(ends, marks)
    used = block < ends.shape[1]
    block = block.clamp_(max=ends.shape[1] - 1)
    starts = functional.pad(ends, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK)).double().cumsum(-1)
    place = (inside < (marks - starts)[..., None]).sum(-1).clamp_(max=BLOCK - 1)
    ids = block * BLOCK + place
    # Where a block's two sums round apart a mark may fall on a token of probability 0, or on one token twice.
    used &= inclusion.gather(1, ids) > 0
    used[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return ids, used
