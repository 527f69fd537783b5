"""Smaller targets from larger ones: fewer top_k entries or fewer samples, still unbiased."""

import torch
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.estimate import inclusion_probabilities, relative_logits


def thinned_layout(layout: TargetLayout, top_k: int | None, samples: int | None) -> TargetLayout:
    """The layout with this top_k and these samples; raises `UserError` when the cache holds fewer."""
    top_k, samples = layout.top_k if top_k is None else top_k, layout.samples if samples is None else samples
    if layout.mode == "exact":
        raise UserError("targets: the cache is in exact mode and has no entries to thin; leave top_k and samples out")
    for name, wanted, least, held in (("top_k", top_k, 1, layout.top_k), ("samples", samples, 0, layout.samples)):
        if not least <= wanted <= held:
            raise UserError(f"targets.{name} {wanted}: the cache holds {held}; choose {least} to {held}")
    return layout.model_copy(update={"top_k": top_k, "samples": samples})


def thin(
    ids: Tensor, values: Tensor, log_mass: Tensor, layout: TargetLayout, wanted: TargetLayout, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn ids and values (..., K) and log_mass (..., J) of `layout` into those of the smaller layout `wanted`.

    Entries that leave the top_k add their mass to the log-mass. An entry that was kept with probability pi stays where
    uniform (..., K) is below pi'/pi, so that its total probability is pi', as `wanted` asks.
    """
    before = inclusion_probabilities(values, log_mass, layout)
    log_mass = _with_demoted(values, log_mass, layout, wanted)
    after = inclusion_probabilities(values, log_mass, wanted)
    stays = (uniform * before < after) & (values > -torch.inf)
    stays[..., : wanted.top_k] = True
    if not wanted.samples:
        stays[..., wanted.top_k :] = False
    order = torch.argsort(~stays, dim=-1, stable=True, descending=False)
    stays = stays.gather(-1, order)
    values = values.gather(-1, order).masked_fill(~stays, -torch.inf)
    return ids.gather(-1, order).masked_fill(~stays, 0), values, log_mass


def _with_demoted(values: Tensor, log_mass: Tensor, layout: TargetLayout, wanted: TargetLayout) -> Tensor:
    if wanted.top_k == layout.top_k:
        return log_mass
    demoted = relative_logits(values)[..., wanted.top_k : layout.top_k]
    masses = [torch.logsumexp(demoted / t, dim=-1) for t in layout.node_temperatures]
    return torch.logaddexp(log_mass, torch.stack(masses, dim=-1)).clamp(min=LOG_MASS_FLOOR)
