"""A training job from start to end: assemble, resume, measure, train, measure, write the result."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from delta_common.errors import UserError
from delta_common.files import write_atomically
from student.model.transplant.student import TransplantStudent
from student.run.checkpoints import Checkpoint, Progress, find_checkpoint
from student.run.files import PLAN_FILE, SETTINGS_FILE, TEACHER_CONFIG_FILE, TRAINED_FILE, RunPlan
from student.run.stages import planned
from student.settings import TrainSettings
from student.train.assemble import Run, assemble
from student.train.checkpoint import load_checkpoint, require_same_run, save_trained
from student.train.engine import free_memory
from student.train.loop import train
from student.train.measure import Measures, measure, recorded
from student.train.processes import Processes
from teacher_cache.read.cache import open_cache


@dataclass(frozen=True)
class Outcome:
    """What a job returns."""

    run: Run
    """In its last stage."""
    resumed_at: int
    """Steps that earlier calls had taken."""
    before: Measures | None
    """Held-out numbers before the first step; None if not measured."""
    after: Measures | None
    """Held-out numbers after the last step; None if not measured."""
    waiting: float | None
    """Share of the steps' time spent waiting for data; None if no step was left."""


def run_job(settings: TrainSettings, cache_path: str | Path, out: Path, processes: Processes) -> Outcome:
    """Train a student, or continue from the newest checkpoint under `out`; every process calls this.

    Writes under `out`: `settings.json`, `plan.json`, `checkpoints/`, `metrics.jsonl`, `costs.jsonl`,
    `evaluation.jsonl`, `trained.safetensors`.
    Raises `UserError` when `out` belongs to another run.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    cache = open_cache(cache_path)
    found = find_checkpoint(out)
    start = Progress() if found is None else found[1].progress
    run = assemble(settings, cache, out, processes, done=start.steps)
    _begin_or_continue(run, settings, found)
    before = recorded(run, 0) if start.steps else measure(run, 0)
    done, time = train(run, start)
    while not run.stage.is_last:
        config = run.student.teacher_config if isinstance(run.student, TransplantStudent) else None
        run.engine.destroy()
        del run
        free_memory()
        run = assemble(settings, cache, out, processes, done=done.steps, teacher_config=config)
        _load(run, find_checkpoint(out))
        done, more = train(run, done)
        time += more
    after = measure(run, run.total_steps)
    save_trained(run.student, out / TRAINED_FILE, processes)
    return Outcome(run, start.steps, before, after, time.share_waiting)


def _begin_or_continue(run: Run, settings: TrainSettings, found: Checkpoint | None) -> None:
    """Load the checkpoint that was found, if one was, and prepare the run's folder."""
    start = Progress()
    if found is not None:
        start = found[1].progress
        require_same_run(*found, run.state(start))
        _load(run, found)
    if run.processes.rank == 0:
        _prepare_folder(run, settings, start.steps)
        if found is not None:
            done = f"continuing after step {start.steps} of {run.total_steps}"
            print(f"student-train: {run.out}: {done}", file=sys.stderr)
    torch.distributed.barrier()


def _load(run: Run, found: Checkpoint | None) -> None:
    """Load a checkpoint: where a stage ended, the next one begins from it as a stopped run continues from it."""
    assert found is not None
    run.untrained.update(load_checkpoint(run.engine, *found))


def _prepare_folder(run: Run, settings: TrainSettings, start: int) -> None:
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run.out}: cannot be made ({error.strerror}); give another folder") from error
    plan = RunPlan(total_steps=run.total_steps, stages=tuple(planned(stage) for stage in run.stages))
    for name, content in ((SETTINGS_FILE, settings), (PLAN_FILE, plan)):
        write_atomically(run.out / name, content.model_dump_json(indent=1).encode() + b"\n")
    if isinstance(run.student, TransplantStudent):
        config = json.dumps(run.student.teacher_config, indent=1, sort_keys=True)
        write_atomically(run.out / TEACHER_CONFIG_FILE, config.encode() + b"\n")
    run.metrics.drop_after(start)
    run.costs.drop_after(start)
    run.measurements.drop_after(start if start else -1)
