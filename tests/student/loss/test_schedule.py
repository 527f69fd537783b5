"""Schedules against values worked out by hand, and against the formulas of the method."""

import math

import pytest

from student.loss.schedule import Coefficients, cosine_with_warmup, decayed_init, delta_schedule, distillation_at
from student.loss.settings import DistillationSettings, FrobeniusSettings

STEPS = (0, 1, 10, 100, 1000)
EXPECTED = {
    # decay, epoch: (alpha at STEPS, temperature at STEPS)
    ("subtractive", 0): (
        (0.8, 0.6771848, 0.5882899, 0.5534272, 0.5379326),
        (2.0, 1.5906161, 1.2942998, 1.1780906, 1.1264422),
    ),
    ("multiplicative", 0): (
        (0.8, 0.6771848, 0.5882899, 0.5534272, 0.5379326),
        (2.0, 1.5906161, 1.2942998, 1.1780906, 1.1264422),
    ),
    ("subtractive", 3): (
        (0.65, 0.5885924, 0.5441450, 0.5267136, 0.5189663),
        (1.85, 1.5020237, 1.2501549, 1.1513770, 1.1074758),
    ),
    ("multiplicative", 3): (
        (0.6859, 0.6097955, 0.5547103, 0.5331070, 0.5235056),
        (1.71475, 1.4221429, 1.2103508, 1.1272902, 1.0903745),
    ),
}


@pytest.mark.parametrize(("decay", "epoch"), EXPECTED)
def test_alpha_and_temperature_have_the_papers_values(decay: str, epoch: int) -> None:
    settings = DistillationSettings(epoch_decay=decay)  # type: ignore[arg-type]
    found = [distillation_at(settings, epoch=epoch, step_in_epoch=k, global_step=k + 7000 * epoch) for k in STEPS]
    alphas, temperatures = EXPECTED[decay, epoch]
    assert [c.alpha for c in found] == pytest.approx(alphas, abs=1e-7)
    assert [c.temperature for c in found] == pytest.approx(temperatures, abs=1e-7)
    assert {c.beta for c in found} == {0.2}


@pytest.mark.parametrize("epoch", range(30))
@pytest.mark.parametrize("decay", ["subtractive", "multiplicative"])
def test_every_epoch_starts_delta_lower_until_the_final_value(decay: str, epoch: int) -> None:
    start = 2.0
    for _ in range(epoch):
        start = max(start - (0.05 if decay == "subtractive" else 0.05 * start), 1.0)
    found = decayed_init(epoch, init=2.0, final=1.0, delta=0.05, decay=decay)  # type: ignore[arg-type]
    assert found == pytest.approx(start, abs=1e-12)


def test_without_restart_k_is_the_global_step_and_the_start_still_falls() -> None:
    settings = DistillationSettings(restart_each_epoch=False)
    found = distillation_at(settings, epoch=3, step_in_epoch=0, global_step=1000)
    assert found.temperature == pytest.approx(1 + 0.85 / (1 + math.log(1001)))


def test_annealed_beta_follows_the_same_schedule() -> None:
    settings = DistillationSettings(frobenius=FrobeniusSettings(weight_init=0.2, weight_final=0.1))
    found = [distillation_at(settings, epoch=1, step_in_epoch=k, global_step=0).beta for k in STEPS]
    assert found == pytest.approx([0.15, 0.1295308, 0.1147150, 0.1089045, 0.1063221], abs=1e-7)


def test_no_frobenius_weight_turns_the_term_off() -> None:
    settings = DistillationSettings(frobenius=FrobeniusSettings(weight_init=0, weight_final=0))
    assert not settings.frobenius.enabled
    found = distillation_at(settings, epoch=0, step_in_epoch=0, global_step=0)
    assert found == Coefficients(alpha=0.8, temperature=2.0, beta=0.0)


def test_equal_ends_stay_fixed() -> None:
    assert {delta_schedule(k, init=0.4, final=0.4) for k in STEPS} == {0.4}


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [cosine_with_warmup(k, peak=2e-4, warmup_steps=9, total_steps=109) for k in range(111)]
    assert rates[:10] == pytest.approx([2e-5 * (k + 1) for k in range(10)])
    assert rates[59] == pytest.approx(1e-4)
    assert rates[34] == pytest.approx(2e-4 * (0.5 + math.sqrt(2) / 4))
    assert rates[109] == rates[110] == pytest.approx(0, abs=1e-12)


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert cosine_with_warmup(0, peak=1.0, warmup_steps=0, total_steps=1) == 1.0
