"""Logits of one chunk of positions → what a row keeps of them: the top_k entries and the log-mass of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teacher_cache.format import LOG_MASS_FLOOR


@dataclass(frozen=True)
class KeptTargets:
    """What is kept of n distributions.

    ids (n, K) int64 and values (n, K) in the logits' dtype, largest logit first; log_mass (n, J) float32,
    `A(beta_j) = log sum_{i outside the top_k} exp(beta_j (z_i - z_max))`; label_logits (n,) float32.
    """

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    label_logits: Tensor


def keep_targets(logits: Tensor, labels: Tensor, *, top_k: int, node_temperatures: Sequence[float]) -> KeptTargets:
    """Kept entries and log-mass of logits (n, V) over the real vocabulary; labels (n,) int64.

    `logits` is used as scratch space when it is float32. Padding rows of the vocabulary must be cut off before.
    """
    values, ids = logits.topk(top_k, dim=-1)
    label_logits = logits.gather(1, labels[:, None]).squeeze(1).float()
    rest = logits.float().sub_(values[:, :1].float())
    rest.scatter_(1, ids, -torch.inf)
    return KeptTargets(ids, values, log_mass_at(rest, node_temperatures), label_logits)


def log_mass_at(relative_logits: Tensor, node_temperatures: Sequence[float]) -> Tensor:
    """`log sum_i exp(z_i / T_j)` for logits relative to the maximum, (n, V) float32 → (n, J), floored.

    Relative logits are at most 0, so no further maximum is needed: the sum neither overflows nor, while it
    matters beside the kept entries, underflows.
    """
    masses = torch.stack([(relative_logits / t).exp_().sum(-1) for t in node_temperatures], dim=-1)
    return masses.log().clamp_(min=LOG_MASS_FLOOR)


def log_mass_naive(logits: Tensor, *, top_k: int, node_temperatures: Sequence[float]) -> Tensor:
    """The twin of `keep_targets`' log-mass, written as its definition, in float64: (n, V) → (n, J)."""
    z = logits.double()
    order = z.argsort(dim=-1, descending=True)
    rest = z.gather(1, order[:, top_k:]) - z.gather(1, order[:, :1])
    if not rest.shape[1]:
        return z.new_full((len(z), len(node_temperatures)), LOG_MASS_FLOOR)
    masses = [torch.logsumexp(rest / t, dim=-1) for t in node_temperatures]
    return torch.stack(masses, dim=-1).clamp(min=LOG_MASS_FLOOR)
