"""The parts of a training run, put together: rows, student, engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data.mix import readers_of
from student.data.order import BatchReader, ShuffleSizes
from student.evaluate.caches import open_held_out
from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusTerm, StateMap
from student.loss.schedule import cosine_with_warmup
from student.loss.settings import DistillationSettings, FrobeniusSettings
from student.model.frozen import FrozenHead
from student.model.recorded import record_passes
from student.model.student import STATE_MAP, Student
from student.model.transplant.families import Config
from student.run.caches import distillations, require_fit, shares_of, view
from student.run.checkpoints import MixedCache, Progress, TrainingState
from student.run.records import COSTS_FILE, EVALUATION_FILE, METRICS_FILE, Records
from student.run.stages import Stage, stage_at, stages_of
from student.run.student import initial_student, teacher_head
from student.settings import TrainSettings
from student.train.engine import deepspeed_config, make_engine, trained_names
from student.train.processes import Processes
from teacher_cache.read.cache import Cache

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
    caches: tuple[Cache, ...]
    """What is trained on: whole caches, or views of fewer of their targets."""
    held_out: tuple[Cache, ...]
    out: Path
    processes: Processes
    readers: tuple[BatchReader, ...]
    """By cache."""
    student: Student
    engine: "DeepSpeedEngine"
    """Around `student`."""
    distillations: tuple[DistillationSettings, ...]
    """Of the stage, by cache."""
    frobenius: tuple[FrobeniusTerm | None, ...]
    """By cache; None where that term is off."""
    trained: frozenset[str]
    """Names of the parameters that any stage trains."""
    teacher_head: FrozenHead | None = None
    """Where the teacher's targets are computed with its head and the student has another."""
    untrained: dict[str, Tensor] = field(default_factory=dict)
    """What the stage does not train, in float32 by name, as far as it came out of a file; in the first process."""

    @property
    def cache(self) -> Cache:
        """The first cache, which embedding, LM head and tokenizer come from."""
        return self.caches[0]

    @property
    def reader(self) -> BatchReader:
        """Of the first cache: which epoch a step is of, is the same for all."""
        return self.readers[0]

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
            window_shards=self.reader.sizes.window,
            pool_shards=self.reader.sizes.pool,
            caches=self._mixed() if len(self.caches) > 1 else (),
            settings=self.deciding,
        )

    def _mixed(self) -> tuple[MixedCache, ...]:
        return tuple(
            MixedCache(
                path=str(cache.path),
                fingerprint=cache.fingerprint,
                share=reader.share,
                window_shards=reader.sizes.window,
                pool_shards=reader.sizes.pool,
            )
            for cache, reader in zip(self.caches, self.readers, strict=True)
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
    others: Sequence[Cache] = (),
    init_from: Path | None = None,
    done: int = 0,
    config: Config | None = None,
    sizes: Sequence[ShuffleSizes] | None = None,
) -> Run:
    """Build everything the stage of the step behind `done` steps needs, with initial weights.

    `cache` and `others` are those of the settings, or the one they do not name. With `config`, as the run's folder
    keeps it, a student made of layers of transformers has random weights, to be loaded over; `sizes` are those of
    the run's checkpoint, by cache. Raises `UserError` for settings that do not fit the caches, of later stages too.
    """
    caches = tuple(view(each, settings.targets) for each in (cache, *others))
    readers = _readers(settings, caches, processes, sizes)
    stages = stages_of(settings, readers[0].batches_per_epoch)
    deciding = settings.deciding(processes.world_size, init_from)
    for each in stages:
        require_fit(settings.of_stage(each.settings), each, caches)
    held_out = open_held_out(settings.evaluation.paths, caches)
    student = initial_student(settings, caches[0], processes.device, config)
    _put_map_beside(student, [settings.of_stage(each.settings) for each in stages], caches)
    each_trained = (trained_names(student, settings.of_stage(s.settings), s.settings.train) for s in stages)
    trained = frozenset[str]().union(*each_trained)
    stage = stage_at(stages, done)
    settings = settings.of_stage(stage.settings)
    wanted = distillations(settings, caches)
    return Run(
        settings,
        deciding,
        stages,
        stage,
        caches,
        held_out,
        out,
        processes,
        readers,
        student,
        engine=_engine(student, settings, stage, out, processes),
        distillations=wanted,
        frobenius=_frobenius(caches, wanted, student, processes.device),
        trained=trained,
        teacher_head=teacher_head(student, (*caches, *held_out), processes.device, student.embedding.dtype),
    )


def _require_width(student: Student, stages: Sequence[TrainSettings], caches: Sequence[Cache]) -> None:
    """Raise `UserError` where a stage would compare states of two widths without a map."""
    ours, theirs = student.embedding.shape[1], caches[0].manifest.hidden_size
    for term in (each.frobenius for stage in stages for each in distillations(stage, caches)):
        if term.enabled and not term.trains_map and ours != theirs:
            raise UserError(
                f"distillation.frobenius.channels {term.channels}: the student's hidden states have {ours} channels, "
                f"the teacher's {theirs}; set channels mapped, or weight_init and weight_final 0"
            )


def _put_map_beside(student: Student, stages: Sequence[TrainSettings], caches: Sequence[Cache]) -> None:
    """Give the student the map that a stage trains, if one does.

    Within it, so that DeepSpeed and checkpoints treat the map as they treat the student's own parameters.
    """
    _require_width(student, stages, caches)
    if any(stage.trains_map for stage in stages):
        embedding = student.embedding
        state_map = StateMap(embedding.shape[1], caches[0].manifest.hidden_size)
        setattr(student, STATE_MAP, state_map.to(embedding.device, embedding.dtype))


def _readers(
    settings: TrainSettings, caches: Sequence[Cache], processes: Processes, sizes: Sequence[ShuffleSizes] | None
) -> tuple[BatchReader, ...]:
    return readers_of(
        caches,
        shares_of(settings, caches),
        seed=settings.training.seed,
        global_batch=settings.training.global_batch(processes.world_size),
        rank=processes.rank,
        world_size=processes.world_size,
        sizes=sizes,
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
    if student.can_compile:
        student.trains_compiled = True
        record_passes(student, accumulates=settings.training.gradient_accumulation > 1)
    return engine


def _frobenius(
    caches: Sequence[Cache], wanted: Sequence[DistillationSettings], student: Student, device: torch.device
) -> tuple[FrobeniusTerm | None, ...]:
    """By cache; one map serves all, so the teacher's channels are all divided by the sizes in the first cache's."""
    with_term = [cache for cache, each in zip(caches, wanted, strict=True) if each.frobenius.enabled]
    sizes = {each.frobenius.channels for each in wanted if each.frobenius.enabled} - {"raw"}
    rms = channel_rms(with_term[0]).to(device) if sizes else None

    def term(frobenius: FrobeniusSettings) -> FrobeniusTerm | None:
        if not frobenius.enabled:
            return None
        state_map = getattr(student, STATE_MAP) if frobenius.trains_map else None
        return FrobeniusTerm(frobenius.norm, None if frobenius.channels == "raw" else rms, state_map)

    return tuple(term(each.frobenius) for each in wanted)
