"""Keeping targets as the definition is written: the naive twin of `keep_torch` and `keep_triton`."""

from functools import partial

import torch
from torch import Tensor

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.estimate import proposal_scales
from teacher_cache.targets.keep import KeptTargets, logits_of_labels, ordered_entries, round_log_mass
from teacher_cache.targets.keep_torch import draw_systematically, in_blocks, take_blocks


def keep_naively(stored: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """`keep.keep_by_torch` with whole vocabularies at a time; arguments and result are the same."""
    values, ids = stored.float().sort(dim=-1, descending=True, stable=True)
    values, ids = values[:, : layout.top_k], ids[:, : layout.top_k]
    rest = (stored.float() - values[:, :1]).scatter_(1, ids, -torch.inf)
    log_mass = torch.stack([torch.logsumexp(rest / t, -1) for t in layout.node_temperatures], dim=-1)
    log_mass = round_log_mass(log_mass, layout.log_mass_step)
    drawn = None
    if layout.samples:
        scales = proposal_scales(values, log_mass, layout)
        inclusion = sum((scale[:, None] * torch.exp(rest / t) for scale, t in scales), torch.zeros_like(rest))
        drawn = systematic_sample(inclusion.clamp_(max=1.0), uniform, layout.samples)
    return KeptTargets(*ordered_entries(stored, ids, drawn), log_mass, logits_of_labels(stored, labels))


def systematic_sample(inclusion: Tensor, uniform: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """`draw_systematically` where all inclusion probabilities (n, V) are given."""
    blocks = in_blocks(inclusion, 0.0)
    return draw_systematically(blocks.sum(-1), partial(take_blocks, blocks), uniform, samples)
