"""A training job from start to end: assemble, resume, measure, train, measure, write the result."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from delta_common.errors import UserError
from delta_common.files import write_atomically
from delta_common.settings_file import FrozenSettings
from student.loss.frobenius import StateMap
from student.model.student import STATE_MAP, is_beside
from student.run.caches import open_caches
from student.run.checkpoints import PARAMETER, Checkpoint, Progress, TrainingState, find_checkpoint
from student.run.files import (
    PLAN_FILE,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    TRAINED_FILE,
    Origin,
    Provenance,
    RunPlan,
    TrainedCache,
)
from student.run.origin import read_beginning, require_same_shapes
from student.run.stages import planned
from student.run.student import config_of, kept_config
from student.run.student_words import cache_words, pool_words
from student.settings import INIT_FROM, TrainSettings
from student.train.assemble import Run, assemble
from student.train.checkpoint import load_checkpoint, load_parameters, require_same_run, save_trained
from student.train.engine import free_memory
from student.train.loop import train
from student.train.master_states import parameter_shapes
from student.train.measure import Measures, measure, recorded
from student.train.processes import Processes
from teacher_cache.read.cache import Cache


@dataclass(frozen=True)
class Outcome:
    """What a job returns."""

    run: Run
    """In its last stage."""
    resumed_at: int
    """Steps that earlier calls had taken."""
    before: Measures | None
    """Held-out numbers before the first step, of several held-out caches those on the first; None if not measured."""
    after: Measures | None
    """The same after the last step."""
    waiting: float | None
    """Share of the steps' time spent waiting for data; None if no step was left."""


def run_job(
    settings: TrainSettings,
    cache_path: str | Path | None,
    out: Path,
    processes: Processes,
    init_from: Path | None = None,
) -> Outcome:
    """Train a student, or continue from the newest checkpoint under `out`; every process calls this.

    It is trained on the cache at `cache_path`, or without one on the caches of the settings.

    A new run begins with the parameters of the run or export `init_from`, if one is given. Writes under `out`:
    `settings.json`, `plan.json`, `provenance.json`, `checkpoints/`, `metrics.jsonl`, `costs.jsonl`,
    `evaluation.jsonl`, `trained.safetensors`. Raises `UserError` when `out` belongs to another run.
    """
    _require_folder(out, init_from)
    if cache_path is not None:
        settings = settings.model_copy(update={"caches": ()})
    cache, *others = open_caches(settings, cache_path)
    found = find_checkpoint(out)
    # A checkpoint of other caches, which is refused below, has no sizes for these.
    known = found is not None and len(found[1].sizes) == 1 + len(others)
    assembled = partial(
        assemble,
        settings,
        cache,
        out,
        processes,
        others=others,
        init_from=init_from,
        sizes=found[1].sizes if found is not None and known else None,
    )
    start = Progress() if found is None else found[1].progress
    run = (
        _begin(assembled, settings, cache, out, init_from) if found is None else _continue(assembled, settings, *found)
    )
    before = recorded(run, 0) if start.steps else measure(run, 0)
    done, time = train(run, start)
    while not run.stage.is_last:
        kept = kept_config(run.student)
        run.engine.destroy()
        del run
        free_memory()
        run = assembled(done=done.steps, config=None if kept is None else kept[1])
        _load(run, find_checkpoint(out))
        done, more = train(run, done)
        time += more
    after = measure(run, run.total_steps)
    save_trained(run.student, out / TRAINED_FILE, processes)
    return Outcome(run, start.steps, _first(before), _first(after), time.share_waiting)


def _first(measured: Sequence[Measures | None]) -> Measures | None:
    return measured[0] if measured else None


def _require_folder(out: Path, init_from: Path | None) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    if init_from is not None and out.resolve() == init_from.resolve():
        raise UserError(f"--init-from {init_from}: is also --out; a run begins in a folder of its own")


def _begin(
    assembled: Callable[..., Run], settings: TrainSettings, cache: Cache, out: Path, init_from: Path | None
) -> Run:
    """The run at its first step, with the teacher's weights, random ones or those of `init_from`."""
    chain: tuple[Origin, ...] = ()
    if init_from is None:
        run = assembled()
    else:
        beginning = read_beginning(init_from, settings.model, cache)
        run, chain = assembled(config=beginning.config), beginning.chain
        require_same_shapes(beginning, parameter_shapes(run.engine))
        stored = {f"{PARAMETER}/{name}": tensor for name, tensor in beginning.parameters.items()}
        if any(map(is_beside, run.trained)):
            trained_map = getattr(run.student, STATE_MAP)
            untrained_map = StateMap(trained_map.width, trained_map.teacher_width).state_dict()
            stored |= {f"{PARAMETER}/{STATE_MAP}.{name}": tensor for name, tensor in untrained_map.items()}
        run.untrained.update(load_parameters(run.engine, stored, lambda name: stored[name].float()))
    if run.processes.rank == 0:
        _prepare_folder(run, settings, 0)
        known = provenance(run, chain)
        _write(out / PROVENANCE_FILE, known)
        for number, trained_on in enumerate(known.caches, start=1):
            print(f"student-train: cache {number}: {cache_words(trained_on)}", file=sys.stderr)
        _say_small_pools(run)
    torch.distributed.barrier()
    return run


def _continue(assembled: Callable[..., Run], settings: TrainSettings, folder: Path, state: TrainingState) -> Run:
    """The run at the step of its newest checkpoint, which has all parameters if they came from elsewhere."""
    out, start = folder.parents[1], state.progress
    has_all = INIT_FROM in state.settings or settings.model.is_causal_lm
    run = assembled(done=start.steps, config=config_of(out, settings.model) if has_all else None)
    require_same_run(folder, state, run.state(start))
    _load(run, (folder, state))
    if run.processes.rank == 0:
        _prepare_folder(run, settings, start.steps)
        print(
            f"student-train: {out}: continuing after step {start.steps} of {run.total_steps}{_in_stage(run)}",
            file=sys.stderr,
        )
    torch.distributed.barrier()
    return run


def _say_small_pools(run: Run) -> None:
    rows = run.settings.training.global_batch(run.processes.world_size)
    for reader in run.readers:
        words = pool_words(str(reader.cache.path), reader.pool_rows, rows * reader.share)
        if words is not None:
            print(f"student-train: {words}", file=sys.stderr)


def _in_stage(run: Run) -> str:
    return "" if len(run.stages) == 1 else f", {run.stage.words}"


def provenance(run: Run, begun_from: tuple[Origin, ...] = ()) -> Provenance:
    """What the run is trained on, and the chain that its parameters come from."""
    manifest = run.cache.manifest
    return Provenance(
        cache=_resolved(run.cache),
        cache_fingerprint=run.cache.fingerprint,
        teacher=manifest.teacher_name,
        teacher_weights_sha256=manifest.teacher.weights_sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
        context=manifest.rows.context,
        embedding_scale=run.student.embedding_scale,
        logit_transform=run.student.logit_transform,
        begun_from=begun_from,
        caches=_trained_caches(run) if len(run.caches) > 1 else (),
    )


def _trained_caches(run: Run) -> tuple[TrainedCache, ...]:
    return tuple(
        TrainedCache(
            path=_resolved(cache),
            fingerprint=cache.fingerprint,
            teacher=cache.manifest.teacher_name,
            rows=len(cache),
            share=reader.share,
            passes=reader.passes(run.total_steps),
            has_states=cache.manifest.hidden.mean != "none",
        )
        for cache, reader in zip(run.caches, run.readers, strict=True)
    )


def _resolved(cache: Cache) -> str:
    return str(cache.path.resolve()) if isinstance(cache.path, Path) else cache.path


def _load(run: Run, found: Checkpoint | None) -> None:
    """Load a checkpoint: where a stage ended, the next one begins from it as a stopped run continues from it."""
    if found is None:
        raise UserError(f"--out {run.out}: its checkpoints are not seen from here; give a folder that all hosts share")
    run.untrained.update(load_checkpoint(run.engine, *found))


def _prepare_folder(run: Run, settings: TrainSettings, start: int) -> None:
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run.out}: cannot be made ({error.strerror}); give another folder") from error
    plan = RunPlan(total_steps=run.total_steps, stages=tuple(planned(stage) for stage in run.stages))
    _write(run.out / SETTINGS_FILE, settings)
    _write(run.out / PLAN_FILE, plan)
    kept = kept_config(run.student)
    if kept is not None:
        file, config = kept
        write_atomically(run.out / file, json.dumps(config, indent=1, sort_keys=True).encode() + b"\n")
    run.metrics.drop_after(start)
    run.costs.drop_after(start)
    run.measurements.drop_after(start if start else -1)


def _write(path: Path, content: FrozenSettings) -> None:
    write_atomically(path, content.model_dump_json(indent=1).encode() + b"\n")
