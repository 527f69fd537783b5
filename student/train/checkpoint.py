"""Checkpoints: one folder per saved step, from which a run continues to the bit.

DeepSpeed's own checkpoints are pickles, cut to one number of processes and one ZeRO stage. Here a checkpoint is one
safetensors file of whole tensors by name and one JSON file, so a run may continue with any number of processes and any
stage, and loading runs no code. `state.json` is written last: a folder without it is no checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from delta_common.differences import differences
from delta_common.errors import UserError
from delta_common.files import settle_on_disk, write_atomically
from student.model.student import is_beside
from student.run.checkpoints import FOLDER, PARAMETER, STATE_FILE, TENSORS_FILE, TrainingState, digest_of
from student.settings import INIT_FROM
from student.train.engine import loss_scaler
from student.train.master_states import gathered_states, restore_states, untrained_names
from student.train.processes import Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CHECKPOINTS_KEPT = 2
LOSS_SCALE_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def save_checkpoint(
    engine: "DeepSpeedEngine",
    out: Path,
    state: TrainingState,
    processes: Processes,
    untrained: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint and remove all but the newest two; every process calls this.

    `untrained` has float32 parameters by name that the stage does not train, as `load_parameters` gives them to the
    first process; those that it lacks are taken as the student has them. Raises `UserError` when the disk is full or
    the folder cannot be written.
    """
    folder = out / FOLDER / f"step_{state.step:08d}"
    first = processes.rank == 0
    states = gathered_states(engine, updates=state.updates, untrained=untrained)
    # Only the first process keeps what all of them gather.
    kept = {name: whole.to("cpu", copy=True).contiguous() for name, whole in states if first}
    if first:
        try:
            _write(folder, kept, state.model_copy(update={"loss_scale": _loss_scale(engine)}))
        except (OSError, SafetensorError) as error:
            remedy = "make room or choose another --out, then run the same command again; earlier checkpoints are kept"
            raise UserError(f"{folder}: the checkpoint cannot be written ({error}); {remedy}") from error
        _drop_old(folder.parent)
    torch.distributed.barrier()


def require_same_run(folder: Path, found: TrainingState, wanted: TrainingState) -> None:
    """Raise `UserError`, naming the difference and the remedy, unless training may go on from `found`."""
    _require_same_caches(folder, found, wanted)
    before, now = found.settings.get(INIT_FROM), wanted.settings.get(INIT_FROM)
    if before != now:
        words = [f"with --init-from {where}" if where else "without --init-from" for where in (before, now)]
        raise UserError(f"{folder}: of a run begun {words[0]}, now {words[1]}; give the same, or another --out")
    # Through JSON and back, as the settings found were: tuples become lists.
    changed = list(differences(found.settings, json.loads(json.dumps(wanted.settings))))
    if changed:
        key, before, now = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        how = " (processes × micro_batch_size × gradient_accumulation)" if key == "training.global_batch" else ""
        raise UserError(
            f"{folder}: a checkpoint with {key} {before}, now {now}{more}; set it back{how} or give another --out"
        )


def _require_same_caches(folder: Path, found: TrainingState, wanted: TrainingState) -> None:
    if found.fingerprints != wanted.fingerprints:
        before, now = (" and ".join(f"{f[:12]}…" for f in state.fingerprints) for state in (found, wanted))
        if max(len(found.fingerprints), len(wanted.fingerprints)) == 1:
            of, remedy = f"another cache ({before}, this one is {now})", "give that cache with --cache"
        else:
            of, remedy = f"other caches ({before}, these are {now})", "give those with --cache, in that order,"
        raise UserError(f"{folder}: a checkpoint of {of}; {remedy} or another folder with --out")
    if [cache.share for cache in found.caches] != [cache.share for cache in wanted.caches]:
        before, now = (_shares(state) for state in (found, wanted))
        raise UserError(f"{folder}: a checkpoint with shares {before}, now {now}; set them back or give another --out")


def _shares(state: TrainingState) -> str:
    return " and ".join(f"{cache.share:.6g} of {cache.path}" for cache in state.caches)


def load_checkpoint(engine: "DeepSpeedEngine", folder: Path, state: TrainingState) -> dict[str, Tensor]:
    """Restore parameters, optimizer, learning rate and loss scale; every process calls this.

    Returns what `load_parameters` does. Raises `UserError` when the tensors are not those that were written.
    """
    path = folder / TENSORS_FILE
    if digest_of(path) != state.tensors_xxh3_128:
        raise UserError(f"{path}: not as it was written; remove {folder} to continue from the checkpoint before it")
    with safe_open(path, framework="pt") as tensors:
        kept = load_parameters(engine, tensors.keys(), tensors.get_tensor, updates=state.updates)
    restore_learning_rate(engine, state.updates)
    scaler = loss_scaler(engine)
    for name, value in state.loss_scale.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    engine.global_steps, engine.skipped_steps = state.step, state.progress.skipped
    engine.global_samples = state.step * engine.train_batch_size()
    return kept


def load_parameters(
    engine: "DeepSpeedEngine", names: Iterable[str], stored: Callable[[str], Tensor], *, updates: int = 0
) -> dict[str, Tensor]:
    """Restore float32 parameters, and AdamW's moments after `updates`; every process calls this.

    `stored` gives the tensor of a name of a checkpoint. Returns the parameters that are not trained, by their own
    names, in the first process alone: in 16 bits the student has them rounded only.
    """
    known = set(names)
    restore_states(engine, stored, updates=updates, known=known)
    if torch.distributed.get_rank() != 0:
        return {}
    kept = (name for name in untrained_names(engine) if f"{PARAMETER}/{name}" in known)
    return {name: stored(f"{PARAMETER}/{name}") for name in kept}


def restore_learning_rate(engine: "DeepSpeedEngine", updates: int) -> None:
    """Set the learning rate's schedule to where it is after this many updates."""
    scheduler = engine.lr_scheduler
    rates = [
        base * multiplier(updates) for base, multiplier in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    counts = {"last_epoch": updates, "_step_count": updates + 1, "_last_lr": rates}
    scheduler.load_state_dict(scheduler.state_dict() | counts)
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def save_trained(module: torch.nn.Module, path: Path, processes: Processes) -> None:
    """Write the student's parameters, by their names, to a safetensors file: those that were not trained too.

    What was trained beside it is left out.

    They have the precision the student computes in: 16 bits under fp16 and bf16. Every process calls this.
    """
    import deepspeed

    parameters = {name: p for name, p in module.named_parameters() if not is_beside(name)}
    partitioned = [p for p in parameters.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        if processes.rank == 0:
            tensors = {name: p.detach().to("cpu", copy=True).contiguous() for name, p in parameters.items()}
            write_atomically(path, save(tensors))
    torch.distributed.barrier()


def _write(folder: Path, tensors: dict[str, torch.Tensor], state: TrainingState) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).unlink(missing_ok=True)
    path = folder / TENSORS_FILE
    save_file(tensors, path)
    size = settle_on_disk(path)
    finished = state.model_copy(update={"tensors_bytes": size, "tensors_xxh3_128": digest_of(path)})
    write_atomically(folder / STATE_FILE, finished.model_dump_json(indent=1, by_alias=True).encode())


def _loss_scale(engine: "DeepSpeedEngine") -> dict[str, float | None]:
    scaler = loss_scaler(engine)
    return {name: getattr(scaler, name) for name in LOSS_SCALE_NUMBERS if hasattr(scaler, name)}


def _drop_old(folder: Path) -> None:
    finished = sorted(state.parent for state in folder.glob(f"step_*/{STATE_FILE}"))
    for old in set(folder.glob("step_*")) - set(finished[-CHECKPOINTS_KEPT:]):
        # The record goes first, so that a removal cut short leaves no checkpoint that looks whole.
        (old / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(old)
