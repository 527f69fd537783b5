"""One training, in this process.

Leaves `metrics.jsonl`, `curve.jsonl` (held-out figures at every quarter) and, last, `result.json`.
"""

import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_common.files import write_atomically
from delta_common.settings_file import load_settings
from experiments.plan import ExperimentPlan, Folder
from experiments.train.accounts import Account, make_account
from experiments.train.schedules import Length, coefficients_at
from experiments.train.unfreezing import unfreeze
from experiments.variants import Variant
from student.data.batch import Batch, GlobalCounts
from student.loss.distillation import DistillationLoss, loss_against
from student.loss.schedule import Coefficients
from student.run.records import Records
from student.settings import TrainSettings
from student.train.assemble import Run, assemble
from student.train.loop import LossOf, step_batches, take_step
from student.train.measure import evaluate
from student.train.processes import Processes
from student.train.step_log import StepMetrics
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher

CONFIG = Path(__file__).parents[2] / "configs" / "demo-student.yaml"
QUARTERS = 4
HELD_OUT_MEASURES = ("cross_entropy", "kl", "agreement", "calibration_error")
"""What is kept of the student's measures on held-out rows."""

TIMED = {"none": "ce", "cache": "delta", "online": "online"}
"""The variants whose steps are timed, by the source of the teacher's distribution."""


@dataclass(frozen=True)
class VariantJob:
    """One training."""

    folder: Folder
    plan: ExperimentPlan
    variant: Variant
    seed: int

    @property
    def out(self) -> Path:
        return self.folder.run(self.variant.name, self.seed)

    @property
    def steps(self) -> int:
        """The plan's number, or as many as fit into the time of another variant's."""
        if self.variant.as_long_as is None:
            return self.plan.steps
        seconds = self.folder.step_seconds()
        return round(self.plan.steps * seconds[self.variant.as_long_as] / seconds[TIMED[self.variant.teacher]])

    def settings(self) -> TrainSettings:
        """The common settings, overridden by the plan's and then by the variant's."""
        steps = self.steps
        common = (
            f"--training.epochs={math.ceil(steps / (self.plan.rows // self.plan.batch))}",
            f"--training.max_steps={steps}",
            f"--training.micro_batch_size={self.plan.batch}",
            f"--training.seed={self.seed}",
            "--distillation.frobenius.weight_init=0",
            "--distillation.frobenius.weight_final=0",
        )
        options = (*common, *self.plan.options, *self.variant.options)
        return load_settings(TrainSettings, CONFIG, options).model_copy(update={"deepspeed": None})


@dataclass
class Trace:
    """What a training records of its steps."""

    seconds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0

    def add(self, metrics: StepMetrics, seconds: float) -> None:
        self.seconds.append(seconds)
        self.norms.append(metrics.gradient_norm)
        self.tokens += metrics.tokens


class Training:
    """A variant's student while it trains; `with Training(...) as training` reads its batches ahead."""

    def __init__(self, job: VariantJob, processes: Processes) -> None:
        variant = job.variant
        exact = variant.teacher not in ("cache", "none", "online")
        cache = open_cache(job.folder.cache("exact" if exact else variant.states))
        self.run = assemble(job.settings(), cache, job.out, processes)
        self.teacher_head = self.run.student.head
        self._variant = variant
        self._length = Length(self.run.total_steps, self.run.reader.batches_per_epoch)
        self._loss_of = variant_loss(variant, make_account(variant.teacher, self.teacher_head, _teacher(job, cache)))
        self._coming = step_batches(self.run, 0)

    def __enter__(self) -> "Training":
        self._batches = self._coming.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._coming.__exit__(*raised)

    def step(self, step: int) -> tuple[StepMetrics, float]:
        """Take a step; return its metrics and the seconds it took."""
        began = time.perf_counter()
        if self._variant.unfreeze_at is not None and step == round(self._variant.unfreeze_at * self.run.total_steps):
            unfreeze(self.run.engine, self.run.student)
        coefficients = coefficients_at(self._variant, self.run.settings.distillation, step, self._length)
        epoch = step // self._length.epoch
        metrics = take_step(self.run, next(self._batches), (coefficients,), step, epoch, self._loss_of)
        return metrics, time.perf_counter() - began


def _teacher(job: VariantJob, cache: Cache) -> Teacher | None:
    """The teacher that built the cache, for variants whose steps run it."""
    if job.variant.teacher != "online":
        return None
    return load_teacher(TeacherSettings(model=job.plan.teacher, dtype=cache.manifest.teacher.dtype))


def train_variant(job: VariantJob, processes: Processes) -> None:
    """Train, measure at every quarter and write the results; the time of measuring does not count."""
    job.out.mkdir(parents=True, exist_ok=True)
    curve, held_out, trace = Records(job.out / "curve.jsonl"), open_cache(job.folder.cache("held-out")), Trace()
    for file in (job.out / "metrics.jsonl", curve.path):
        file.unlink(missing_ok=True)
    training = Training(job, processes)
    run = training.run

    def measured(step: int) -> dict[str, float]:
        measures = evaluate(run, held_out, len(held_out), teacher_head=training.teacher_head)
        found = {name: getattr(measures, name) for name in HELD_OUT_MEASURES}
        curve.append({"step": step, **found})
        return found

    quarters = [run.total_steps * quarter // QUARTERS for quarter in range(QUARTERS)]
    with training:
        for step in range(run.total_steps):
            if step in quarters:
                measured(step)
            metrics, seconds = training.step(step)
            trace.add(metrics, seconds)
            run.metrics.append({**metrics.line, "seconds": seconds})
    _write(job, run, trace, measured(run.total_steps))


def variant_loss(variant: Variant, account: Account) -> LossOf:
    """The variant's loss, as `take_step` calls it."""

    def loss_of(
        run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, counts: GlobalCounts
    ) -> DistillationLoss:
        divergence = account(batch, batch.valid_positions, coefficients.temperature) if coefficients.alpha else None
        frobenius = run.frobenius[batch.cache] if variant.frobenius_counts else None
        head = run.student.head
        return loss_against(divergence, hidden_states, head, batch, coefficients, counts, frobenius=frobenius)

    return loss_of


def _write(job: VariantJob, run: Run, trace: Trace, measures: dict[str, float]) -> None:
    later = trace.norms[len(trace.norms) // 2 :]
    device = run.processes.device
    result = {
        "variant": job.variant.name,
        "seed": job.seed,
        "steps": run.total_steps,
        "tokens": trace.tokens,
        "trained": sum(parameter.numel() for parameter in run.student.parameters()),
        "seconds": sum(trace.seconds),
        "gradient_norm": statistics.median(later),
        **measures,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    write_atomically(job.out / "result.json", json.dumps(result, indent=1).encode())
