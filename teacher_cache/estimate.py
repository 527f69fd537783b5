"""From what a row keeps back to the teacher's distribution at a temperature: pure functions on tensors.

Builder, reader and student use the same ones, on a CPU or a GPU. Shapes: values (..., K) float32 logits, the top_k
largest first, then the sampled ones, unused places -inf; log_mass (..., J) float32. `layout` is the manifest's.

A kept entry that is not among the top_k was drawn with probability `pi_i = min(1, n r_i)`, r the proposal's mixture
of the teacher at several temperatures. For any f, `sum_kept (p_i / pi_i) f_i` has the expectation `sum_i p_i f_i`
at every temperature at once (Horvitz and Thompson's estimator).
"""

import torch
from torch import Tensor

from teacher_cache.format import TargetLayout
from teacher_cache.nodes import derivative_weights, interpolation_weights


def relative_logits(values: Tensor) -> Tensor:
    """Logits relative to the largest, (..., K)."""
    return values - values[..., :1]


def log_rest(log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`A(1/T)`: log-mass outside the top_k at T, relative to the largest logit, interpolated; (...)."""
    return log_mass @ _as_tensor(interpolation_weights(layout.node_temperatures, temperature), log_mass)


def log_partition(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`log Z(T)` relative to the largest logit: the top_k exactly, all others by their log-mass; (...)."""
    top = torch.logsumexp(relative_logits(values[..., : layout.top_k]) / temperature, dim=-1)
    return torch.logaddexp(top, log_rest(log_mass, layout, temperature))


def log_probabilities(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`log p_i(T) = (z_i - z_max)/T - log Z(T)` of the kept entries, (..., K)."""
    return relative_logits(values) / temperature - log_partition(values, log_mass, layout, temperature)[..., None]


def inclusion_probabilities(values: Tensor, log_mass: Tensor, layout: TargetLayout) -> Tensor:
    """`pi_i` of the kept entries, (..., K): 1 for the top_k, `min(1, n r_i)` behind them.

    Follows from stored values alone, at building and at reading alike; unused places give 0.
    """
    included = torch.ones_like(values)
    if layout.samples:
        sampled = values[..., layout.top_k :] - values[..., :1]
        rate = torch.zeros_like(sampled)
        for scale, temperature in proposal_scales(values, log_mass, layout):
            rate += scale[..., None] * torch.exp(sampled / temperature)
        included[..., layout.top_k :] = rate.clamp_(max=1.0)
    return included


def proposal_scales(values: Tensor, log_mass: Tensor, layout: TargetLayout) -> list[tuple[Tensor, float]]:
    """`(n a_j / Z(T_j), T_j)` for each part of the proposal: times exp((z - z_max)/T_j), summed, this is `n r`."""
    return [
        (layout.samples * share * torch.exp(-log_partition(values, log_mass, layout, temperature)), temperature)
        for temperature, share in layout.proposal
    ]


def target_weights(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`p_i(T) / pi_i` of the kept entries, (..., K); 0 in unused places. What a sum over the vocabulary needs."""
    included = inclusion_probabilities(values, log_mass, layout)
    p = torch.exp(log_probabilities(values, log_mass, layout, temperature))
    return torch.where(included > 0, p / included.clamp(min=torch.finfo(p.dtype).tiny), 0.0)


def entropy(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """The teacher's entropy at T in nats: `log Z - beta dlogZ/dbeta`, the rest's part from dA/dbeta; (...)."""
    top, log_z = values[..., : layout.top_k], log_partition(values, log_mass, layout, temperature)
    relative = relative_logits(top).clamp(min=torch.finfo(values.dtype).min)
    top_mean = (torch.exp(relative / temperature - log_z[..., None]) * relative).sum(-1)
    slope = log_mass @ _as_tensor(derivative_weights(layout.node_temperatures, temperature), log_mass)
    rest_mean = torch.exp(log_rest(log_mass, layout, temperature) - log_z) * slope
    return log_z - (top_mean + rest_mean) / temperature


def retained_mass(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """Probability at T of the entries kept, (...)."""
    return torch.exp(log_probabilities(values, log_mass, layout, temperature)).sum(-1).clamp_(max=1.0)


def mass_variance(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """Estimate of `sum_i p_i^2 (1 - pi_i)/pi_i`: the variance that sampling adds to a sum over p(T); (...).

    n independent draws from p(T) would add 1/n, so its inverse is the effective sample size at T.
    """
    included = inclusion_probabilities(values, log_mass, layout)
    weights = target_weights(values, log_mass, layout, temperature)
    return (weights.square() * (1 - included)).sum(-1)


def _as_tensor(weights: object, like: Tensor) -> Tensor:
    return torch.as_tensor(weights, dtype=like.dtype, device=like.device)
