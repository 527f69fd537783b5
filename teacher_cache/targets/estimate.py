"""From kept targets back to the teacher's distribution at any temperature T: pure functions on tensors.

Builder, reader and student all use these, on a CPU or a GPU. Shapes throughout: values (..., K) float32 logits, the
top_k largest first, then the sampled ones, unused places -inf; log_mass (..., J) float32. `layout` is the manifest's.

An entry outside the top_k was drawn with probability `pi_i = min(1, n r_i)`, where r is the proposal: a mixture of
the teacher at several temperatures. For any f, `sum_kept (p_i / pi_i) f_i` has the expectation `sum_i p_i f_i`, at
every temperature (the Horvitz-Thompson estimator).
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

LOG2_E = math.log2(math.e)

SLICE_POSITIONS = 2048
"""Positions `estimate_at` works on at once on a CPU, so that they stay in its cache."""


def relative_logits(values: Tensor) -> Tensor:
    """Logits relative to the largest, (..., K)."""
    return values - values[..., :1]


def log_rest(log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`A(1/T)`: log-mass outside the top_k at T, relative to the largest logit, interpolated between nodes; (...)."""
    return log_mass @ _as_tensor(interpolation_weights(layout.node_temperatures, temperature), log_mass)


def log_partition(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """Log partition function `log Z(T)` relative to the largest logit, from the top_k and the log-mass; (...)."""
    top = torch.logsumexp(relative_logits(values[..., : layout.top_k]) / temperature, dim=-1)
    return torch.logaddexp(top, log_rest(log_mass, layout, temperature))


def log_probabilities(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`log p_i(T) = (z_i - z_max)/T - log Z(T)` of the kept entries, (..., K)."""
    return relative_logits(values) / temperature - log_partition(values, log_mass, layout, temperature)[..., None]


def inclusion_probabilities(values: Tensor, log_mass: Tensor, layout: TargetLayout) -> Tensor:
    """`pi_i` of the kept entries, (..., K): 1 for the top_k, `min(1, n r_i)` for the sampled, 0 in unused places.

    Depends on stored values only, so builder and reader get the same numbers.
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
    """`(n a_j / Z(T_j), T_j)` for each part j of the proposal: `n r = sum_j n a_j / Z(T_j) exp((z - z_max)/T_j)`."""
    return [
        (layout.samples * share * torch.exp(-log_partition(values, log_mass, layout, temperature)), temperature)
        for temperature, share in layout.proposal
    ]


def target_weights(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """`p_i(T) / pi_i` of the kept entries, (..., K), 0 in unused places: the weights of a sum over the vocabulary."""
    included = inclusion_probabilities(values, log_mass, layout)
    p = torch.exp(log_probabilities(values, log_mass, layout, temperature))
    return torch.where(included > 0, p / included.clamp(min=torch.finfo(p.dtype).tiny), 0.0)


def entropy(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """The teacher's entropy at T in nats, (...): `log Z - beta dlogZ/dbeta`; outside the top_k from dA/dbeta."""
    top, log_z = values[..., : layout.top_k], log_partition(values, log_mass, layout, temperature)
    relative = relative_logits(top).clamp(min=torch.finfo(values.dtype).min)
    top_mean = (torch.exp(relative / temperature - log_z[..., None]) * relative).sum(-1)
    slope = log_mass @ _as_tensor(derivative_weights(layout.node_temperatures, temperature), log_mass)
    rest_mean = torch.exp(log_rest(log_mass, layout, temperature) - log_z) * slope
    return log_z - (top_mean + rest_mean) / temperature


@dataclass(frozen=True)
class DistributionEstimate:
    """The teacher's distributions at one temperature.

    weights (..., K): p_i/pi_i of the kept entries; log_partition (...): log Z(T) relative to the largest logit;
    entropy (...): in nats.
    """

    weights: Tensor
    log_partition: Tensor
    entropy: Tensor


def estimate_at(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> DistributionEstimate:
    """`target_weights`, `log_partition` and `entropy` together, several times faster than those one by one.

    Raises `UserError` when T is outside the cached range.
    """
    shape, width = values.shape[:-1], values.shape[-1]
    values, log_mass = values.reshape(-1, width), log_mass.reshape(-1, log_mass.shape[-1])
    size = SLICE_POSITIONS if values.device.type == "cpu" else max(1, len(values))
    coefficients = _Coefficients.of(layout, temperature, log_mass)
    weights = torch.empty_like(values)
    totals = torch.empty(2, len(values), dtype=values.dtype, device=values.device)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        own = values[part].T.clone(memory_format=torch.contiguous_format)  # a copy even of one position
        found, log_z, nats = _estimate(own, log_mass[part].T, layout, coefficients)
        weights[part], totals[0, part], totals[1, part] = found.T, log_z, nats
    return DistributionEstimate(weights.view(*shape, width), *(total.view(shape) for total in totals))


@dataclass(frozen=True)
class _Coefficients:
    """What depends on temperatures only.

    betas (m,) and interpolation (m, J): for T first, then the proposal's temperatures; slope (J,): of A at T.
    """

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
    """Weights (K, n), log Z (n,) and entropy (n,) from values (K, n), which are overwritten, and log_mass (J, n)."""
    top_k, betas = layout.top_k, coefficients.betas
    relative = values.sub_(values[0].clone())
    top = relative[:top_k].clamp(min=torch.finfo(values.dtype).min)
    rest = torch.exp(coefficients.interpolation @ log_mass)  # (m, n)
    z = torch.stack([_exp(top, beta).sum(0) for beta in betas]) + rest
    weights = _exp(relative, betas[0]).div_(z[0])
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
    """`min(1, n r)` of sampled entries (K, n), never 0.

    Needs one exponential if all betas are small multiples of one step, otherwise one for each.
    """
    step = min(abs(one - other) for one, other in pairwise([0.0, *sorted(betas)]) if one != other)
    multiples = [round(beta / step) for beta in betas]
    shared = max(multiples) <= 8 and all(math.isclose(m * step, b) for m, b in zip(multiples, betas, strict=True))
    rate = torch.zeros_like(sampled)
    if not shared:
        for beta, scale in zip(betas, scales, strict=True):
            rate.addcmul_(_exp(sampled, beta), scale)
    else:
        base = _exp(sampled, step)
        power, reached = base.clone(), 1
        for multiple, scale in sorted(zip(multiples, scales, strict=True), key=lambda pair: pair[0]):
            while reached < multiple:
                power.mul_(base)
                reached += 1
            rate.addcmul_(power, scale)
    return rate.clamp_(min=torch.finfo(rate.dtype).tiny, max=1.0)


def _exp(logits: Tensor, beta: float) -> Tensor:
    """`exp(beta logits)`: a power of 2 takes a CPU a quarter of the time, and a tenth where the result is nearly 0."""
    return torch.exp2(logits * (beta * LOG2_E))


def retained_mass(values: Tensor, log_mass: Tensor, layout: TargetLayout, temperature: float) -> Tensor:
    """Total probability at T of the kept entries, (...)."""
    return torch.exp(log_probabilities(values, log_mass, layout, temperature)).sum(-1).clamp_(max=1.0)


def mass_variance(p: Tensor, included: Tensor) -> Tensor:
    """An estimate of `sum_i p_i^2 (1 - pi_i)/pi_i`, (...): the variance that sampling adds to a sum over p(T).

    p (..., K): probabilities of the kept entries at T; included (..., K): their `inclusion_probabilities`. With n
    independent draws from p(T) it would be 1/n, so its inverse is the effective sample size at T.
    """
    weights = torch.where(included > 0, p / included.clamp(min=torch.finfo(p.dtype).tiny), 0.0)
    return (weights.square() * (1 - included)).sum(-1)


def _as_tensor(weights: Iterable[float], like: Tensor) -> Tensor:
    return _constant(tuple(float(weight) for weight in weights), like.dtype, like.device)


@lru_cache(maxsize=1024)
def _constant(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cached, and copied without waiting: to copy even a few numbers to a GPU waits for all its queued work."""
    with torch.inference_mode(mode=False):  # tensors made in inference mode cannot take part in training
        return torch.tensor(weights, dtype=dtype).to(device, non_blocking=True)
