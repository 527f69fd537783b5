"""One training in a process of its own: `python -m experiments.one FOLDER VARIANT SEED [--timing]`.

Leaves `metrics.jsonl`, `curve.jsonl` (held-out figures at every quarter) and, last, `result.json`.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cli_common.errors import run_command
from cli_common.files import write_atomically
from cli_common.settings_file import load_settings
from experiments.accounts import Account, make_account
from experiments.measure import Figures, measure_student
from experiments.plan import Folder, Plan
from experiments.schedules import Length, coefficients_at
from experiments.unfreezing import unfreeze
from experiments.variants import Variant, all_variants
from student.assemble import Run, assemble
from student.batch import Batch
from student.engine import Processes, joined_processes, quiet_deepspeed
from student.frozen_weights import FrozenHead
from student.loss import DistillationLoss, loss_against
from student.records import Records
from student.schedule import Coefficients
from student.settings import TrainSettings
from student.trainer import LossOf, step_batches, take_step
from teacher_cache.reader import open_cache
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher import load_teacher

CONFIG = Path(__file__).parents[1] / "configs" / "demo-student.yaml"
WARM_STEPS = 5
"""Steps whose time is not counted: kernels are chosen and memory is found in them."""
TIMING_STEPS = 30
QUARTERS = 4


@dataclass(frozen=True)
class Job:
    """One training."""

    folder: Folder
    plan: Plan
    variant: Variant
    seed: int
    timing: bool

    @property
    def out(self) -> Path:
        if self.timing:
            return self.folder.timing(self.variant.name)
        return self.folder.run(self.variant.name, self.seed)

    @property
    def steps(self) -> int:
        """The plan's, or as many as take the time that another variant's take."""
        if self.timing:
            return WARM_STEPS + TIMING_STEPS
        if self.variant.as_long_as is None:
            return self.plan.steps
        own = TIMED[self.variant.teacher]
        return round(
            self.plan.steps * self.folder.step_seconds(self.variant.as_long_as) / self.folder.step_seconds(own)
        )

    def settings(self) -> TrainSettings:
        """The common ones with the variant's laid over them."""
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


TIMED = {"none": "ce", "cache": "delta", "online": "online"}
"""Variants that are timed, by where their teacher's distribution comes from."""


@dataclass
class Trace:
    """What is kept while training."""

    seconds: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0


def run_job(job: Job, processes: Processes) -> None:
    """Train, measure, write."""
    job.out.mkdir(parents=True, exist_ok=True)
    curve = Records(job.out / "curve.jsonl")
    for file in (job.out / "metrics.jsonl", curve.path):
        file.unlink(missing_ok=True)
    exact = job.variant.teacher not in ("cache", "none", "online")
    run = assemble(job.settings(), open_cache(job.folder.cache("exact" if exact else "sparse")), job.out, processes)
    head = run.student.head
    held_out = open_cache(job.folder.cache("held-out"))

    def measured(step: int) -> Figures:
        found = measure_student(run.student, head, held_out, processes.device)
        curve.append({"step": step, **found.as_record()})
        return found

    trace = _train(job, run, head, () if job.timing else _quarters(run.total_steps), measured)
    figures = {} if job.timing else measured(run.total_steps).as_record()
    _write(job, run, trace, figures)


def _quarters(steps: int) -> tuple[int, ...]:
    return tuple(steps * quarter // QUARTERS for quarter in range(QUARTERS))


def _train(
    job: Job, run: Run, head: FrozenHead, measured_at: tuple[int, ...], measured: Callable[[int], Figures]
) -> Trace:
    """All steps; held-out figures are taken between them and their time is not counted."""
    variant, trace = job.variant, Trace()
    teacher = None
    if variant.teacher == "online":
        identity = run.cache.manifest.teacher
        teacher = load_teacher(TeacherSettings(model=job.plan.teacher, dtype=identity.dtype))
    loss_of = variant_loss(variant, make_account(variant.teacher, head, teacher))
    length = Length(run.total_steps, run.reader.batches_per_epoch)
    unfrozen_at = None if variant.unfreeze_at is None else round(variant.unfreeze_at * run.total_steps)
    with step_batches(run, 0) as batches:
        for step in range(run.total_steps):
            if step in measured_at:
                measured(step)
            if step == unfrozen_at:
                unfreeze(run.engine, run.student)
            began = time.perf_counter()
            coefficients = coefficients_at(variant, run.settings.distillation, step, length)
            metrics = take_step(run, next(batches), coefficients, step, step // length.epoch, loss_of)
            trace.seconds.append(time.perf_counter() - began)
            trace.norms.append(metrics.gradient_norm)
            trace.tokens += metrics.tokens
            run.metrics.append({**vars(metrics), "seconds": trace.seconds[-1]})
    return trace


def variant_loss(variant: Variant, account: Account) -> LossOf:
    """The variant's loss, as `take_step` calls it."""

    def loss_of(
        run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, tokens: float, sequences: float
    ) -> DistillationLoss:
        divergence = account(batch, coefficients.temperature) if coefficients.alpha else None
        compared = run.frobenius is not None and variant.frobenius_counts
        return loss_against(
            divergence,
            hidden_states,
            run.student.head,
            batch.labels,
            batch.loss_mask,
            coefficients,
            tokens=tokens,
            sequences=sequences,
            hidden_mean=batch.hidden_mean if compared else None,
            frobenius=run.frobenius,
        )

    return loss_of


def _write(job: Job, run: Run, trace: Trace, figures: dict[str, float]) -> None:
    later = trace.norms[len(trace.norms) // 2 :]
    device = run.processes.device
    result = {
        "variant": job.variant.name,
        "seed": job.seed,
        "steps": run.total_steps,
        "tokens": trace.tokens,
        "trained": sum(parameter.numel() for parameter in run.student.parameters()),
        "seconds": sum(trace.seconds),
        "step_seconds": statistics.median(trace.seconds[WARM_STEPS:] or trace.seconds),
        "gradient_norm": statistics.median(later),
        **figures,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    write_atomically(job.out / "result.json", json.dumps(result, indent=1).encode())


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("variant")
    parser.add_argument("seed", type=int)
    parser.add_argument("--timing", action="store_true", help="a few steps, only for their time")
    arguments = parser.parse_args()
    folder = Folder(arguments.folder)
    job = Job(folder, folder.plan(), all_variants()[arguments.variant], arguments.seed, arguments.timing)

    def call() -> None:
        with quiet_deepspeed(), joined_processes() as processes:
            run_job(job, processes)

    sys.exit(run_command("experiments", call))


if __name__ == "__main__":
    main()
