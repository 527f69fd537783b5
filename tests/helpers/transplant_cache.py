"""A cache that carries the body of a small Llama, and settings that train a student from it in a second."""

from pathlib import Path
from typing import Any

from delta_common.settings_file import load_settings
from student.settings import TrainSettings
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family

QUICK = [
    *("--training.micro_batch_size=2", "--training.gradient_accumulation=2", "--training.checkpoint_every=2"),
    *("--optimizer.learning_rate=3e-3", "--model.window=8", "--distillation.temperature_init=1"),
    *("--distillation.frobenius.weight_init=0", "--distillation.frobenius.weight_final=0"),
]
TWO_STAGES = "--stages=[{train: mixers, loss: transfer, steps: 5, learning_rate: 1.0e-2}, {steps: 4}]"
"""Attention transfer, then everything by distillation; 24 rows in batches of 4 are 6 steps an epoch."""


def make_transplant_cache(folder: Path, **sections: Any) -> Path:
    """`teacher`, `texts` and `cache` in a folder; keyword arguments are more of the build's sections."""
    save_family("Llama", folder / "teacher")
    write_text_corpus(folder)
    base: dict[str, Any] = {
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32", "carry": "body"},
        "corpus": {"source": str(folder / "texts")},
        "rows": {"seq_len": 32, "count": 24},
        "compute": {"batch_size": 8, "rows_per_shard": 8},
    }
    build(BuildSettings.model_validate({**base, **sections}), folder / "cache")
    return folder / "cache"


def quick_settings(*options: str) -> TrainSettings:
    return load_settings(TrainSettings, None, [*QUICK, *options])
