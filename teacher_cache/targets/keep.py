"""From logits to the targets a row keeps: top_k entries, sampled entries, and the log-mass outside the top_k."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_common.installed import has_triton
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.keep_torch import PowerScheme, Workspace, draw, in_blocks, take_top

PIECE_POSITIONS = 256
"""Positions whose blocks PyTorch searches at once."""


@dataclass(frozen=True)
class KeptTargets:
    """What is kept of n distributions.

    ids (n, K) int64 and values (n, K) float32: the top_k in falling order, then the sampled entries in falling order;
    unused places hold id 0 and -inf. log_mass (n, J) float32, rounded as it is stored:
    `A(beta_j) = log sum_{i outside the top_k} exp(beta_j (z_i - z_max))`. label_logits (n,) float32.
    """

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    label_logits: Tensor


def keep_targets(logits: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """The targets of logits (n, V) over the real vocabulary.

    labels (n,) int64; uniform (n,) float64 in [0, 1): the offsets of the systematic samples. Logits are rounded to
    their stored precision first, so that targets are unbiased with respect to stored logits. bfloat16 logits are not
    rounded: float16 holds them exactly but for those below 6e-5, which make no difference. On a GPU with Triton,
    kernels do the work; they may draw other tokens where a running sum rounds to the other side of a mark.
    """
    stored = logits if logits.dtype == torch.bfloat16 else logits.to(getattr(torch, layout.value_dtype))
    keep = keep_by_kernels if _kernels_serve(stored, layout) else keep_by_torch
    return keep(stored, labels, layout, uniform)


def _kernels_serve(stored: Tensor, layout: TargetLayout) -> bool:
    if not stored.is_cuda or not has_triton():
        return False
    from teacher_cache.targets import keep_triton

    return keep_triton.serves(layout)


def keep_by_kernels(stored: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """`keep_targets` of logits at their stored precision, on a GPU; among equal logits the lowest id comes first."""
    from teacher_cache.targets import keep_triton

    stored = stored if stored.stride(1) == 1 else stored.contiguous()
    top = keep_triton.take_top(stored, layout)
    log_mass = round_log_mass(top.log_mass, layout.log_mass_step)
    if layout.samples:
        keep_triton.draw(stored, top, log_mass, layout, uniform)
    return KeptTargets(top.ids, top.values, log_mass, logits_of_labels(stored, labels))


def keep_by_torch(stored: Tensor, labels: Tensor, layout: TargetLayout, uniform: Tensor) -> KeptTargets:
    """`keep_targets` of logits at their stored precision by PyTorch; among equal logits the lowest id comes first."""
    scheme = PowerScheme.of(layout)
    space = Workspace.of(stored[:PIECE_POSITIONS], scheme)
    parts = []
    for some, offsets in zip(*(torch.split(x, PIECE_POSITIONS) for x in (stored, uniform)), strict=True):
        top = take_top(in_blocks(some), layout, scheme, space)
        log_mass = round_log_mass(top.log_mass, layout.log_mass_step)
        drawn = draw(top, log_mass, layout, offsets) if layout.samples else None
        parts.append((*ordered_entries(some, top.ids, drawn), log_mass))
    ids, values, log_mass = (torch.cat(column) for column in zip(*parts, strict=True))
    return KeptTargets(ids, values, log_mass, logits_of_labels(stored, labels))


def ordered_entries(stored: Tensor, ids: Tensor, drawn: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Ids and values of the top_k, followed by those drawn (ids, and which places are used) in falling order."""
    values = stored.gather(1, ids).float()
    if drawn is None:
        return ids, values
    drawn_ids, used = drawn
    drawn_ids = drawn_ids.masked_fill(~used, 0)
    drawn_values = stored.gather(1, drawn_ids).float().masked_fill_(~used, -torch.inf)
    drawn_values, order = drawn_values.sort(dim=-1, descending=True, stable=True)
    return torch.cat([ids, drawn_ids.gather(1, order)], dim=1), torch.cat([values, drawn_values], dim=1)


def join(parts: Sequence[KeptTargets]) -> KeptTargets:
    """The targets of several runs of positions, concatenated."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return KeptTargets(*(torch.cat(column) for column in columns))


def logits_of_labels(stored: Tensor, labels: Tensor) -> Tensor:
    """Logits (n,) float32 of the labels (n,)."""
    return stored.gather(1, labels[:, None]).squeeze(1).float()


def round_log_mass(log_mass: Tensor, step: float) -> Tensor:
    """Log-masses as they are stored: multiples of `step`, not below `LOG_MASS_FLOOR`."""
    return (log_mass / step).round_().mul_(step).clamp_(min=LOG_MASS_FLOOR)
