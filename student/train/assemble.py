"""The parts of a training run, put together: rows, student, engine."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data.order import BatchReader
from student.evaluate.positions import require_temperature_one
from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusTerm, StateMap
from student.loss.schedule import cosine_with_warmup
from student.loss.settings import DistillationSettings, FrobeniusSettings
from student.model.recorded import record_passes
from student.model.student import STATE_MAP, Student
from student.model.transplant.families import Config
from student.model.transplant.student import TransplantStudent
from student.run.checkpoints import Progress, TrainingState
from student.run.records import COSTS_FILE, EVALUATION_FILE, METRICS_FILE, Records
from student.run.stages import Stage, stage_at, stages_of
from student.run.student import DTYPES, initial_student
from student.settings import TargetViewSettings, TrainSettings
from student.train.engine import deepspeed_config, make_engine, trained_names
from student.train.processes import Processes
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.read.cache import Cache, open_cache

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Run:
    """The parts of a run in this process, as they are in one of its stages."""

    settings: TrainSettings
    """Those of the stage, see `TrainSettings.of_stage`."""
    deciding: dict[str, object]
    """Of the settings of the whole run, those that decide the numbers."""
    stages: tuple[Stage, ...]
    stage: Stage
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
    trained: frozenset[str]
    """Names of the parameters that any stage trains."""
    untrained: dict[str, Tensor] = field(default_factory=dict)
    """What the stage does not train, in float32 by name, as far as it came out of a file; in the first process."""

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.stages[-1].stop

    def state(self, progress: Progress) -> TrainingState:
        """What a checkpoint of this progress says about itself."""
        epoch, batch = self.reader.place(progress.steps)
        return TrainingState(
            step=progress.steps,
            stage=stage_at(self.stages, progress.steps).number,
            updates=progress.updates,
            epoch_updates=progress.epoch_updates,
            earlier_updates=progress.earlier_updates,
            epoch=epoch,
            batch=batch,
            cache_fingerprint=self.cache.fingerprint,
            window_shards=self.reader.window_shards,
            settings=self.deciding,
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


def assemble(
    settings: TrainSettings,
    cache: Cache,
    out: Path,
    processes: Processes,
    *,
    init_from: Path | None = None,
    done: int = 0,
    teacher_config: Config | None = None,
    window_shards: int | None = None,
) -> Run:
    """Build everything the stage of the step behind `done` steps needs, with initial weights.

    With `teacher_config` a student that begins as its teacher has random weights, to be loaded over; `window_shards` is
    that of the run's checkpoint. Raises `UserError` for settings that do not fit the cache, of later stages too.
    """
    cache = _view(cache, settings.targets)
    reader = _reader(settings, cache, processes, window_shards)
    stages = stages_of(settings, reader.batches_per_epoch)
    deciding = settings.deciding(processes.world_size, init_from)
    for each in stages:
        _require_fit(settings.of_stage(each.settings), each, cache)
    held_out = None if settings.evaluation.cache is None else _held_out(settings.evaluation.cache, cache)
    student = initial_student(settings, cache, processes.device, teacher_config)
    if any(settings.of_stage(each.settings).distillation.frobenius.trains_map for each in stages):
        # Within the student, so that DeepSpeed and checkpoints treat it as they treat the student's own parameters.
        beside = StateMap(cache.manifest.hidden_size).to(processes.device, DTYPES[settings.training.precision])
        setattr(student, STATE_MAP, beside)
    each_trained = (trained_names(student, settings.of_stage(s.settings), s.settings.train) for s in stages)
    trained = frozenset[str]().union(*each_trained)
    stage = stage_at(stages, done)
    settings = settings.of_stage(stage.settings)
    return Run(
        settings,
        deciding,
        stages,
        stage,
        cache,
        held_out,
        out,
        processes,
        reader,
        student,
        engine=_engine(student, settings, stage, out, processes),
        frobenius=_frobenius(cache, settings.distillation.frobenius, student, processes.device),
        trained=trained,
    )


def _reader(settings: TrainSettings, cache: Cache, processes: Processes, window_shards: int | None) -> BatchReader:
    return BatchReader(
        cache,
        seed=settings.training.seed,
        global_batch=settings.training.global_batch(processes.world_size),
        rank=processes.rank,
        world_size=processes.world_size,
        window_shards=window_shards,
    )


def _engine(
    student: Student, settings: TrainSettings, stage: Stage, out: Path, processes: Processes
) -> "DeepSpeedEngine":
    """A learning rate that rises, and falls to 0 at the stage's end."""
    total = stage.steps
    warmup = math.ceil(settings.optimizer.warmup_ratio * total)
    engine = make_engine(
        student,
        settings,
        deepspeed_config(settings, world_size=processes.world_size, out=out),
        lambda step: cosine_with_warmup(step, peak=1.0, warmup_steps=warmup, total_steps=total),
        stage.settings.train,
    )
    if isinstance(student, TransplantStudent) and student.can_compile:
        student.trains_compiled = True
        record_passes(student)
    return engine


def _view(cache: Cache, targets: TargetViewSettings) -> Cache:
    if targets.top_k is None and targets.samples is None:
        return cache
    return cache.view(top_k=targets.top_k, samples=targets.samples)


def _require_fit(settings: TrainSettings, stage: Stage, cache: Cache) -> None:
    """Raise `UserError` unless the cache has what a stage's loss needs."""
    if stage.settings.loss == "transfer":
        return
    own = stage.settings.distillation is not None
    where = f"stages.{stage.number - 1}.distillation" if own else "distillation"
    _require_temperatures(cache, settings.distillation, where)
    if settings.distillation.frobenius.enabled:
        _require_states(cache, f"{where}.frobenius")


def _require_states(cache: Cache, where: str) -> None:
    """Raise `UserError` unless a row of the cache has enough of the averaged states for the Frobenius term."""
    hidden, width = cache.manifest.hidden, cache.manifest.hidden_size
    remedy = f"set {where}.weight_init and weight_final to 0, or build the cache with"
    if hidden.mean == "none":
        raise UserError(f"{cache.path}: no averaged hidden states, which {where} needs; {remedy} hidden.preset default")
    kept = hidden.positions(cache.manifest.seq_len) * hidden.width(width)
    if kept < width:
        raise UserError(
            f"{cache.path}: a row keeps {kept} numbers of its averaged hidden states, too few for {where} to estimate "
            f"{width} channels from; {remedy} more hidden.channels or a smaller hidden.stride"
        )


def _require_temperatures(cache: Cache, distillation: DistillationSettings, where: str) -> None:
    """The temperature falls while training; check both ends of its range before training begins."""
    if cache.layout.mode == "exact":
        return
    for name in ("temperature_init", "temperature_final"):
        try:
            interpolation_weights(cache.layout.node_temperatures, getattr(distillation, name))
        except UserError as error:
            remedy = "set it inside, or build a cache with other targets.temperatures"
            raise UserError(f"{where}.{name}: {error} of {cache.path}; {remedy}") from error


def _frobenius(cache: Cache, wanted: FrobeniusSettings, student: Student, device: torch.device) -> FrobeniusTerm | None:
    if not wanted.enabled:
        return None
    rms = None if wanted.channels == "raw" else channel_rms(cache).to(device)
    return FrobeniusTerm(wanted.norm, rms, getattr(student, STATE_MAP) if wanted.trains_map else None)


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
