"""α, T and β of a variant's step: the trainer's schedule, other shapes of it, and alignment before it."""

import math
from dataclasses import dataclass

from experiments.variants import Shape, Variant
from student.loss.schedule import Coefficients, decayed_init, distillation_at
from student.loss.settings import DistillationSettings

ALIGNMENT = Coefficients(alpha=0.0, temperature=1.0, beta=1.0)


@dataclass(frozen=True)
class Length:
    """Length of a training and of its epochs, in steps."""

    total: int
    epoch: int


def coefficients_at(variant: Variant, settings: DistillationSettings, step: int, length: Length) -> Coefficients:
    """Coefficients of a step, counted from 0; the schedule begins where alignment ends."""
    aligning = round(variant.align_share * length.total)
    if step < aligning:
        return ALIGNMENT
    rest = Length(length.total - aligning, length.epoch)
    epoch, place = divmod(step - aligning, length.epoch)
    if variant.shape == "log":
        return distillation_at(settings, epoch=epoch, step_in_epoch=place, global_step=step - aligning)
    done, of = (place, length.epoch) if settings.restart_each_epoch else (step - aligning, rest.total)
    left = remaining(variant.shape, done / max(1, of - 1))

    def value(init: float, final: float) -> float:
        start = decayed_init(epoch, init=init, final=final, delta=settings.delta, decay=settings.epoch_decay)
        return final + (start - final) * left

    return Coefficients(
        alpha=value(settings.alpha_init, settings.alpha_final),
        temperature=value(settings.temperature_init, settings.temperature_final),
        beta=value(settings.frobenius.weight_init, settings.frobenius.weight_final),
    )


def remaining(shape: Shape, done: float) -> float:
    """What is left of the way from the first value to the last, 1 to 0, after a share `done` of the steps."""
    done = min(done, 1.0)
    return 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
