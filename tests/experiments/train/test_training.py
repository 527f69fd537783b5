"""A variant's settings, its length, and its loss."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from delta_common.settings_file import load_settings
from experiments.plan import ExperimentPlan, Folder
from experiments.train.training import CONFIG, TIMED, Trace, VariantJob, variant_loss
from experiments.variants import DELTA, all_variants
from student.data.batch import GlobalCounts
from student.loss.divergence import DenseDivergence
from student.loss.frobenius import FrobeniusTerm
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead
from student.settings import TrainSettings
from student.train.step_log import StepMetrics
from tests.helpers.batches import batch_of

PLAN = ExperimentPlan("none", None, 128, rows=400, held_out=48, epochs=2, batch=4, options=("--model.blocks=3",))
COUNTS = GlobalCounts(tokens=6, sequences=2)


@pytest.mark.parametrize("name", all_variants())
def test_every_variant_has_settings(name: str, tmp_path) -> None:
    variant = all_variants()[name]
    if variant.as_long_as is not None:
        seconds = {"delta": 0.6, TIMED[variant.teacher]: 0.4}
        Folder(tmp_path).timing.write_text(json.dumps(seconds))
    job = VariantJob(Folder(tmp_path), PLAN, variant, 7)
    made = job.settings()
    assert made.training.seed == 7
    assert made.training.max_steps == (300 if variant.as_long_as else 200)
    assert made.training.epochs * 100 >= made.training.max_steps
    assert made.optimizer == load_settings(TrainSettings, CONFIG).optimizer
    if not any(option.startswith("--model") for option in variant.options):
        assert made.model.blocks == 3


def test_only_what_a_table_compares_differs() -> None:
    made = {name: VariantJob(Folder(Path()), PLAN, all_variants()[name], 0).settings() for name in ("delta", "ce")}
    assert made["delta"].distillation.frobenius.enabled is False
    assert made["delta"].distillation.alpha_init == 0.8
    assert made["ce"].distillation.alpha_init == made["ce"].distillation.alpha_final == 0
    assert made["delta"].training == made["ce"].training
    assert made["delta"].model == made["ce"].model


def test_as_long_by_the_clock_means_steps_in_proportion(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.timing.write_text('{"delta": 0.6, "ce": 0.4, "online": 1.2}')
    steps = {name: VariantJob(folder, PLAN, all_variants()[name], 0).steps for name in ("ce-as-long", "online-as-long")}
    assert steps == {"ce-as-long": 300, "online-as-long": 100}


def loss_of(variant, coefficients: Coefficients, account) -> Any:
    """The variant's loss of a student whose states are ones and whose averaged teacher's are zeros."""
    labels, mask = torch.tensor([[1, 2, 3], [4, 0, 1]]), torch.ones(2, 3, dtype=torch.bool)
    batch = batch_of(labels, mask, hidden_mean=torch.zeros(2, 3, 4))
    head = FrozenHead(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    run = SimpleNamespace(student=SimpleNamespace(head=head), frobenius=(FrobeniusTerm(),))
    return variant_loss(variant, account)(cast(Any, run), batch, torch.ones(2, 3, 4), coefficients, COUNTS)


def test_the_frobenius_term_is_left_out_but_keeps_its_weight() -> None:
    coefficients = Coefficients(alpha=0.0, temperature=1.0, beta=0.25)
    counted = loss_of(DELTA, coefficients, None)
    left_out = loss_of(replace(DELTA, frobenius_counts=False), coefficients, None)
    assert float(counted.total - left_out.total) == pytest.approx(0.25)  # ones from zeros: 1 per sequence
    assert float(left_out.total) == pytest.approx(
        0.75 * float(loss_of(DELTA, replace(coefficients, beta=0.0), None).total)
    )


def test_the_teacher_is_asked_only_where_it_has_a_weight() -> None:
    asked = []

    def account(batch, places, temperature) -> DenseDivergence:
        asked.append((len(places), temperature))
        return DenseDivergence(temperature, torch.zeros(len(places), 5))

    loss_of(DELTA, Coefficients(alpha=0.0, temperature=1.5, beta=0.0), account)
    assert asked == []
    with_teacher = loss_of(DELTA, Coefficients(alpha=1.0, temperature=1.5, beta=0.0), account)
    assert asked == [(6, 1.5)]
    assert float(with_teacher.total) > 0


def test_a_trace_sums_tokens_and_keeps_each_step() -> None:
    trace = Trace()
    for norm in (1.0, 3.0):
        trace.add(cast(StepMetrics, SimpleNamespace(gradient_norm=norm, tokens=8)), 0.5)
    assert (trace.norms, trace.seconds, trace.tokens) == ([1.0, 3.0], [0.5, 0.5], 16)
