"""From what a row keeps back to the teacher's distribution at a temperature: pure functions on tensors.

Builder, reader and student use the same ones, on a CPU or a GPU. Shapes: values (..., K) float32 logits, the top_k
largest first, then the sampled ones, unused places -inf; log_mass (..., J) float32. `layout` is the manifest's.

A kept entry that is not among the top_k was drawn with probability `pi_i = min(1, n r_i)`, r the proposal's mixture
of the teacher at several temperatures. For any f, `sum_kept (p_i / pi_i) f_i` has the expectation `sum_i p_i f_i`
at every temperature at once (Horvitz and Thompson's estimator).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.format.nodes import derivative_weights, interpolation_weights

SLICE_POSITIONS = 2048
"""Positions `estimate_at` works on at once on a CPU."""


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


@dataclass(frozen=True)
class Estimate:
    """The teacher at one temperature.

    weights (..., K) p_i/pi_i of the kept entries; log_partition (...) log Z(T), relative to the largest logit;
    entropy (...) in nats.
    """

    weights: Tensor
    log_partition: Tensor
    entropy: Tensor


def estimate_at(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Estimate:
    """`target_weights`, `log_partition` and `entropy` in one go, several times faster than each by itself.

    On a CPU some thousand positions at a time, which stay in its cache. Raises `UserError` outside the cached range.
    """
    shape, width = values.shape[:-1], values.shape[-1]
    values, log_mass = values.reshape(-1, width), log_mass.reshape(-1, log_mass.shape[-1])
    size = SLICE_POSITIONS if values.device.type == "cpu" else max(1, len(values))
    coefficients = _Coefficients.of(layout, temperature, log_mass)
    weights = torch.empty_like(values)
    totals = torch.empty(2, len(values), dtype=values.dtype, device=values.device)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        found, log_z, nats = _estimate(values[part].T.contiguous(), log_mass[part].T, layout, coefficients)
        weights[part], totals[0, part], totals[1, part] = found.T, log_z, nats
    return Estimate(weights.view(*shape, width), *(total.view(shape) for total in totals))


@dataclass(frozen=True)
class _Coefficients:
    """Of T and the proposal's temperatures, T first: betas (m,), interpolation (m, J); slope (J,) of A at T."""

    betas: list[float]
    interpolation: Tensor
    slope: Tensor

    @classmethod
    def of(cls, layout: TargetLayout, temperature: float, like: Tensor) -> "_Coefficients":
        temperatures = [temperature, *(t for t, _ in layout.proposal)]
        nodes = layout.node_temperatures
        rows = [_as_tensor(interpolation_weights(nodes, t), like) for t in temperatures]
        slope = _as_tensor(derivative_weights(nodes, temperature), like)
        return cls([1 / t for t in temperatures], torch.stack(rows), slope)


def _estimate(
    values: Tensor, log_mass: Tensor, layout: TargetLayout, coefficients: _Coefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K, n), log Z and entropy (n,) from values (K, n) and log_mass (J, n): positions are contiguous."""
    top_k, betas = layout.top_k, coefficients.betas
    relative = values.sub_(values[0].clone())
    top = relative[:top_k].clamp(min=torch.finfo(values.dtype).min)
    rest = torch.exp(coefficients.interpolation @ log_mass)  # (m, n)
    z = torch.stack([torch.exp(top * beta).sum(0) for beta in betas]) + rest
    weights = torch.exp(relative * betas[0]).div_(z[0])
    log_z = torch.log(z[0])
    slope = (coefficients.slope @ log_mass) * rest[0] / z[0]
    nats = log_z - betas[0] * ((weights[:top_k] * top).sum(0) + slope)
    if layout.samples:
        scales = [
            layout.samples * share / partition for (_, share), partition in zip(layout.proposal, z[1:], strict=True)
        ]
        weights[top_k:] /= _rate(relative[top_k:], betas[1:], scales)
    return weights, log_z, nats


def _rate(sampled: Tensor, betas: list[float], scales: list[Tensor]) -> Tensor:
    """`min(1, n r)` of sampled entries (K, n), never 0; one exponential where the betas share a step, else one each."""
    step = min(abs(one - other) for one, other in pairwise([0.0, *sorted(betas)]) if one != other)
    multiples = [round(beta / step) for beta in betas]
    shared = max(multiples) <= 8 and all(math.isclose(m * step, b) for m, b in zip(multiples, betas, strict=True))
    rate = torch.zeros_like(sampled)
    if not shared:
        for beta, scale in zip(betas, scales, strict=True):
            rate.addcmul_(torch.exp(sampled * beta), scale)
    else:
        base = torch.exp(sampled * step)
        power, reached = base.clone(), 1
        for multiple, scale in sorted(zip(multiples, scales, strict=True), key=lambda pair: pair[0]):
            while reached < multiple:
                power.mul_(base)
                reached += 1
            rate.addcmul_(power, scale)
    return rate.clamp_(min=torch.finfo(rate.dtype).tiny, max=1.0)


def retained_mass(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """Probability at T of the entries kept, (...)."""
    return torch.exp(log_probabilities(values, log_mass, layout, temperature)).sum(-1).clamp_(max=1.0)


def mass_variance(p: Tensor, included: Tensor) -> Tensor:
    """Estimate of `sum_i p_i^2 (1 - pi_i)/pi_i`: the variance that sampling adds to a sum over p(T); (...).

    p (..., K) probabilities of the kept entries at T, included (..., K) their `inclusion_probabilities`. n independent
    draws from p(T) would add 1/n, so its inverse is the effective sample size at T.
    """
    weights = torch.where(included > 0, p / included.clamp(min=torch.finfo(p.dtype).tiny), 0.0)
    return (weights.square() * (1 - included)).sum(-1)


def _as_tensor(weights: Iterable[float], like: Tensor) -> Tensor:
    return _constant(tuple(float(weight) for weight in weights), like.dtype, like.device)


@lru_cache(maxsize=1024)
def _constant(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, for a GPU that is sent a few numbers first finishes all that it has to do."""
    with torch.inference_mode(mode=False):  # what is made in inference mode cannot take part in training
        return torch.tensor(weights, dtype=dtype, device=device)
