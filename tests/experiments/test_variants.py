"""The list of variants: every one is a training that can be set up, and a name means one thing."""

import json
from pathlib import Path

import pytest

from delta_common.settings_file import load_settings
from experiments.plan import Folder, Plan
from experiments.train.training import CONFIG, TIMED, Job
from experiments.variants import TABLES, all_variants
from student.settings import TrainSettings

PLAN = Plan("none", None, 128, rows=400, held_out=48, epochs=2, batch=4, options=("--model.blocks=3",))


def test_a_name_means_one_training() -> None:
    for table in TABLES:
        for variant in table.variants:
            known = all_variants()[variant.name]
            assert (known.options, known.teacher, known.shape) == (variant.options, variant.teacher, variant.shape)


@pytest.mark.parametrize("name", all_variants())
def test_every_variant_has_settings(name: str, tmp_path) -> None:
    variant = all_variants()[name]
    if variant.as_long_as is not None:
        seconds = {"delta": 0.6, TIMED[variant.teacher]: 0.4}
        Folder(tmp_path).timing.write_text(json.dumps(seconds))
    job = Job(Folder(tmp_path), PLAN, variant, 7)
    made = job.settings()
    assert made.training.seed == 7
    assert made.training.max_steps == (300 if variant.as_long_as else 200)
    assert made.training.epochs * 100 >= made.training.max_steps
    assert made.optimizer == load_settings(TrainSettings, CONFIG).optimizer
    if not any(option.startswith("--model") for option in variant.options):
        assert made.model.blocks == 3


def test_only_what_a_table_compares_differs() -> None:
    made = {name: Job(Folder(Path()), PLAN, all_variants()[name], 0).settings() for name in ("delta", "ce")}
    assert made["delta"].distillation.frobenius.enabled is False
    assert made["delta"].distillation.alpha_init == 0.8
    assert made["ce"].distillation.alpha_init == made["ce"].distillation.alpha_final == 0
    assert made["delta"].training == made["ce"].training
    assert made["delta"].model == made["ce"].model
