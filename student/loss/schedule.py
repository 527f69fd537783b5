"""Schedules as pure functions of the step: δ-distillation's α, T and β, and the learning rate.

Steps count optimizer updates from 0, epochs from 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

from student.loss.settings import DistillationSettings


@dataclass(frozen=True)
class Coefficients:
    """Weights and temperature of the loss of one update (Eq. 38)."""

    alpha: float
    """Weight of the teacher's term."""
    temperature: float
    """Softening temperature T."""
    beta: float
    """Weight of the Frobenius term, 0 where it is off."""


def distillation_at(
    settings: DistillationSettings, *, epoch: int, step_in_epoch: int, global_step: int
) -> Coefficients:
    """α, T and β of one update."""
    k = step_in_epoch if settings.restart_each_epoch else global_step

    def value(init: float, final: float) -> float:
        start = decayed_init(epoch, init=init, final=final, delta=settings.delta, decay=settings.epoch_decay)
        return delta_schedule(k, init=start, final=final)

    return Coefficients(
        alpha=value(settings.alpha_init, settings.alpha_final),
        temperature=value(settings.temperature_init, settings.temperature_final),
        beta=value(settings.frobenius.weight_init, settings.frobenius.weight_final),
    )


def delta_schedule(k: int, *, init: float, final: float) -> float:
    """`x_k = x_final + (x_init - x_final) / (1 + ln(1 + k))`."""
    return final + (init - final) / (1 + math.log1p(k))


def decayed_init(
    epoch: int, *, init: float, final: float, delta: float, decay: Literal["subtractive", "multiplicative"]
) -> float:
    """An epoch's x_init: `delta` lower than in the epoch before, absolutely or in proportion, never below `final`."""
    start = init - epoch * delta if decay == "subtractive" else init * (1 - delta) ** epoch
    return max(start, final)


def cosine_with_warmup(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of one update: linear up to `peak` over `warmup_steps`, then a half cosine down to 0.

    The first update already moves (peak / (warmup_steps + 1)), and update `warmup_steps` has the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
