"""Checkpoints: one folder per saved step, from which a run continues to the bit.

DeepSpeed's own checkpoints are pickles, cut to one number of processes and one ZeRO stage. Here a checkpoint is one
safetensors file of whole tensors by name and one JSON file, so a run may continue with any number of processes and any
stage, and loading runs no code. `state.json` is written last: a folder without it is no checkpoint.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from delta_common.differences import differences
from delta_common.errors import UserError
from delta_common.files import parse_json, settle_on_disk, write_atomically
from delta_common.settings_file import FrozenSettings
from student.train.engine import loss_scaler
from student.train.master_states import gathered_states, restore_states
from student.train.processes import Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

FOLDER = "checkpoints"
STATE_FILE = "state.json"
TENSORS_FILE = "states.safetensors"
CHECKPOINTS_KEPT = 2
LOSS_SCALE_NUMBERS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
DIGEST_BLOCK = 1 << 24


@dataclass(frozen=True)
class Progress:
    """How far training has come. A step reads a global batch; an update is a step that changed the parameters.

    A step whose gradient is not finite is skipped and makes no update. The order of rows follows steps; learning rate,
    α, T and β follow updates.
    """

    steps: int = 0
    """Steps since the start of training."""
    updates: int = 0
    """Updates since the start of training."""
    epoch_updates: int = 0
    """Updates since the start of the epoch of the next step."""

    def after_step(self, *, applied: bool, ends_epoch: bool) -> "Progress":
        """The progress one step later."""
        epoch_updates = 0 if ends_epoch else self.epoch_updates + applied
        return Progress(self.steps + 1, self.updates + applied, epoch_updates)


class TrainingState(FrozenSettings):
    """Where training stands; `state.json` of a checkpoint."""

    model_config = ConfigDict(populate_by_name=True)

    step: int
    """Steps taken: global batches read."""
    updates: int
    """Steps that changed the parameters."""
    epoch_updates: int
    """Updates since the start of the epoch of the next step."""
    epoch: int
    """Epoch of the next step."""
    batch: int = Field(alias="position")
    """The global batch of that epoch that the next step reads, from 0; `position` in the file."""
    cache_fingerprint: str
    """sha256 of the manifest of the cache trained on."""
    settings: dict[str, Any]
    """The settings that decide the numbers."""
    loss_scale: dict[str, float | None] = Field(default_factory=dict)
    """fp16's dynamic loss scale and its counters."""
    tensors_bytes: int = 0
    """Size of the file of tensors."""
    tensors_xxh3_128: str = ""
    """Its digest."""

    @property
    def progress(self) -> Progress:
        return Progress(self.step, self.updates, self.epoch_updates)


def save_checkpoint(engine: "DeepSpeedEngine", out: Path, state: TrainingState, processes: Processes) -> None:
    """Write a checkpoint and remove all but the newest two; every process calls this.

    Raises `UserError` when the disk is full or the folder cannot be written.
    """
    folder = out / FOLDER / f"step_{state.step:08d}"
    first = processes.rank == 0
    states = gathered_states(engine, updates=state.updates)
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


def find_checkpoint(out: Path) -> tuple[Path, TrainingState] | None:
    """The newest finished checkpoint under `out` and its state, if any. Raises `UserError` when a file is not whole."""
    finished = sorted((out / FOLDER).glob(f"step_*/{STATE_FILE}"))
    if not finished:
        return None
    folder = finished[-1].parent
    remedy = f"remove {folder} to continue from the checkpoint before it"
    try:
        state = TrainingState.model_validate(parse_json(finished[-1].read_bytes()))
    except ValueError as error:
        raise UserError(f"{finished[-1]}: not the state of a checkpoint; {remedy}") from error
    tensors = folder / TENSORS_FILE
    if not tensors.is_file() or tensors.stat().st_size != state.tensors_bytes:
        raise UserError(f"{tensors}: missing or not {state.tensors_bytes} bytes long, as it was written; {remedy}")
    return folder, state


def require_same_run(folder: Path, found: TrainingState, wanted: TrainingState) -> None:
    """Raise `UserError`, naming the difference and the remedy, unless training may go on from `found`."""
    if found.cache_fingerprint != wanted.cache_fingerprint:
        raise UserError(
            f"{folder}: a checkpoint of another cache ({found.cache_fingerprint[:12]}…, this one is "
            f"{wanted.cache_fingerprint[:12]}…); give that cache with --cache or another folder with --out"
        )
    # Through JSON and back, as the settings found were: tuples become lists.
    changed = list(differences(found.settings, json.loads(json.dumps(wanted.settings))))
    if changed:
        key, before, now = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        how = " (processes × micro_batch_size × gradient_accumulation)" if key == "training.global_batch" else ""
        raise UserError(
            f"{folder}: a checkpoint with {key} {before}, now {now}{more}; set it back{how} or give another --out"
        )


def load_checkpoint(engine: "DeepSpeedEngine", folder: Path, state: TrainingState) -> None:
    """Restore parameters, optimizer, learning rate and loss scale; every process calls this.

    Raises `UserError` when the tensors are not those that were written.
    """
    path = folder / TENSORS_FILE
    if _digest(path) != state.tensors_xxh3_128:
        raise UserError(f"{path}: not as it was written; remove {folder} to continue from the checkpoint before it")
    with safe_open(path, framework="pt") as tensors:
        restore_states(engine, tensors.get_tensor, updates=state.updates)
    restore_learning_rate(engine, state.updates)
    scaler = loss_scaler(engine)
    for name, value in state.loss_scale.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    engine.global_steps, engine.skipped_steps = state.step, state.step - state.updates
    engine.global_samples = state.step * engine.train_batch_size()


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

    They have the precision the student computes in: 16 bits under fp16 and bf16. Every process calls this.
    """
    import deepspeed

    parameters = dict(module.named_parameters())
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
    finished = state.model_copy(update={"tensors_bytes": size, "tensors_xxh3_128": _digest(path)})
    write_atomically(folder / STATE_FILE, finished.model_dump_json(indent=1, by_alias=True).encode())


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(DIGEST_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _loss_scale(engine: "DeepSpeedEngine") -> dict[str, float | None]:
    scaler = loss_scaler(engine)
    return {name: getattr(scaler, name) for name in LOSS_SCALE_NUMBERS if hasattr(scaler, name)}


def _drop_old(folder: Path) -> None:
    finished = sorted(state.parent for state in folder.glob(f"step_*/{STATE_FILE}"))
    for old in set(folder.glob("step_*")) - set(finished[-CHECKPOINTS_KEPT:]):
        # The record goes first, so that a removal cut short leaves no checkpoint that looks whole.
        (old / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(old)
