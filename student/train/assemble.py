"""The parts of a training run, put together: rows, student, engine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from delta_common.errors import UserError
from student.data.order import BatchReader
from student.evaluate.positions import require_temperature_one
from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusTerm
from student.loss.schedule import cosine_with_warmup
from student.loss.settings import DistillationSettings, FrobeniusSettings
from student.model.student import Student
from student.run.records import COSTS_FILE, EVALUATION_FILE, METRICS_FILE, Records
from student.run.student import initial_student
from student.settings import TargetViewSettings, TrainSettings
from student.train.checkpoint import Progress, TrainingState
from student.train.engine import deepspeed_config, make_engine
from student.train.processes import Processes
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.read.cache import Cache, open_cache

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Run:
    """The parts of a run, in this process."""

    settings: TrainSettings
    cache: Cache
    """What is trained on: the whole cache, or a view of fewer of its targets."""
    held_out: Cache | None
    out: Path
    processes: Processes
    reader: BatchReader
    student: Student
    engine: "DeepSpeedEngine"
    """Around `student`."""
    frobenius: FrobeniusTerm | None
    """None where that term is off."""
    total_steps: int

    def state(self, progress: Progress) -> TrainingState:
        """What a checkpoint of this progress says about itself."""
        epoch, batch = self.reader.place(progress.steps)
        return TrainingState(
            step=progress.steps,
            updates=progress.updates,
            epoch_updates=progress.epoch_updates,
            epoch=epoch,
            batch=batch,
            cache_fingerprint=self.cache.fingerprint,
            settings=self.settings.deciding(self.processes.world_size),
        )

    @property
    def metrics(self) -> Records:
        return Records(self.out / METRICS_FILE)

    @property
    def costs(self) -> Records:
        return Records(self.out / COSTS_FILE)

    @property
    def measurements(self) -> Records:
        return Records(self.out / EVALUATION_FILE)


def assemble(settings: TrainSettings, cache: Cache, out: Path, processes: Processes) -> Run:
    """Build everything a run needs, with initial weights. Raises `UserError` for settings that do not fit the cache."""
    cache = _view(cache, settings.targets)
    _require_temperatures(cache, settings.distillation)
    frobenius = _frobenius(cache, settings.distillation.frobenius, processes.device)
    held_out = None if settings.evaluation.cache is None else _held_out(settings.evaluation.cache, cache)
    training = settings.training
    reader = BatchReader(
        cache,
        seed=training.seed,
        global_batch=training.global_batch(processes.world_size),
        rank=processes.rank,
        world_size=processes.world_size,
    )
    steps = training.epochs * reader.batches_per_epoch
    total_steps = steps if training.max_steps is None else min(steps, training.max_steps)
    warmup_steps = math.ceil(settings.optimizer.warmup_ratio * total_steps)
    student = initial_student(settings, cache, processes.device)
    engine = make_engine(
        student,
        settings,
        deepspeed_config(settings, world_size=processes.world_size, out=out),
        lambda step: cosine_with_warmup(step, peak=1.0, warmup_steps=warmup_steps, total_steps=total_steps),
    )
    return Run(settings, cache, held_out, out, processes, reader, student, engine, frobenius, total_steps)


def _view(cache: Cache, targets: TargetViewSettings) -> Cache:
    if targets.top_k is None and targets.samples is None:
        return cache
    return cache.view(top_k=targets.top_k, samples=targets.samples)


def _require_temperatures(cache: Cache, distillation: DistillationSettings) -> None:
    """The temperature falls while training; check both ends of its range before training begins."""
    if cache.layout.mode == "exact":
        return
    for name in ("temperature_init", "temperature_final"):
        try:
            interpolation_weights(cache.layout.node_temperatures, getattr(distillation, name))
        except UserError as error:
            remedy = "set it inside, or build a cache with other targets.temperatures"
            raise UserError(f"distillation.{name}: {error} of {cache.path}; {remedy}") from error


def _frobenius(cache: Cache, wanted: FrobeniusSettings, device: torch.device) -> FrobeniusTerm | None:
    if not wanted.enabled:
        return None
    if cache.manifest.hidden.mean == "none":
        raise UserError(
            f"{cache.path}: no averaged hidden states, which distillation.frobenius needs; set "
            "distillation.frobenius.weight_init and weight_final to 0, or build the cache with hidden states"
        )
    rms = channel_rms(cache).to(device) if wanted.channels == "normalised" else None
    return FrobeniusTerm(wanted.norm, cache.manifest.hidden.stride, rms)


def _held_out(path: str, trained_on: Cache) -> Cache:
    held_out = open_cache(path)
    ours, theirs = trained_on.manifest, held_out.manifest
    same = {
        "tokenizer": ours.tokenizer_sha256 == theirs.tokenizer_sha256,
        "teacher": ours.teacher.weights_sha256 == theirs.teacher.weights_sha256,
        "rows.context": ours.rows.context == theirs.rows.context,
    }
    for name, is_same in same.items():
        if not is_same:
            raise UserError(f"evaluation.cache {path}: another {name} than {trained_on.path}; build both with the same")
    require_temperature_one(held_out, "evaluation.cache")
    return held_out
