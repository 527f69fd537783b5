"""Checkpoints: DeepSpeed's files in a folder a step, valid once `state.json` says so, and an exact way back.

DeepSpeed keeps parameters and optimizer states in files of `torch.save`, which are pickles. They are read here by
torch's restricted unpickler (`weights_only=True`), which builds tensors, plain containers and the three DeepSpeed
classes named below and refuses everything else, where DeepSpeed itself would run whatever the file says. What
resuming decides by lies in `state.json`, and is checked before any other file is opened.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from pydantic import Field, ValidationError
from safetensors.torch import save

from cli_common.differences import differences
from cli_common.errors import UserError
from cli_common.files import settle_on_disk, write_atomically
from cli_common.settings_file import FrozenSettings
from student.engine import Processes

FOLDER = "checkpoints"
STATE_FILE = "state.json"
CHECKPOINTS_KEPT = 2
SAFE_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class TrainingState(FrozenSettings):
    """Where training stands; `state.json` of a checkpoint."""

    step: int
    """Optimizer steps taken."""
    epoch: int
    """Epoch of the next step."""
    position: int
    """Global batch within that epoch that the next step reads."""
    cache_fingerprint: str
    """sha256 of the manifest of the cache trained on."""
    world_size: int
    """Processes that wrote the checkpoint."""
    zero_stage: int
    """ZeRO stage; states of stages 1 to 3 are cut into one part a process."""
    settings: dict[str, Any]
    """The settings that decide the numbers."""
    files: dict[str, int] = Field(default_factory=dict)
    """Bytes of every other file of the checkpoint."""


class WeightsOnlyCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's reader and writer of checkpoint files, reading without running what a pickle may ask for."""

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Write one file; raises `UserError` when the disk is full or the folder cannot be written."""
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:
            remedy = "make room or choose another --out, then run the same command again; earlier checkpoints are kept"
            raise UserError(f"{path}: the checkpoint cannot be written ({error}); {remedy}") from error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file; raises `UserError` when it is damaged or holds anything but states."""
        try:
            with torch.serialization.safe_globals(SAFE_CLASSES):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # the unpickler fails in as many ways as a file can be damaged
            remedy = f"remove {Path(path).parent} to continue from the checkpoint before it"
            raise UserError(f"{path}: not readable as a checkpoint ({str(error).splitlines()[0]}); {remedy}") from error


def read_weights_only(engine: Any) -> None:
    """Make an engine's checkpoints go through `WeightsOnlyCheckpointEngine`, unless its JSON chose another writer."""
    if type(engine.checkpoint_engine) is TorchCheckpointEngine:
        reader = WeightsOnlyCheckpointEngine()
        reader.zipfile_serialization = engine.checkpoint_engine.zipfile_serialization
        engine.checkpoint_engine = reader


def save_checkpoint(engine: Any, out: Path, state: TrainingState, processes: Processes) -> None:
    """Write a checkpoint and drop all but the newest two; every process calls this.

    `state.json` is written last and atomically: a folder without it is no checkpoint.
    """
    folder = out / FOLDER / f"step_{state.step:08d}"
    engine.save_checkpoint(str(folder.parent), tag=folder.name, exclude_frozen_parameters=True)
    if processes.rank == 0:
        files = {path.name: settle_on_disk(path) for path in sorted(folder.iterdir()) if path.name != STATE_FILE}
        write_atomically(
            folder / STATE_FILE, state.model_copy(update={"files": files}).model_dump_json(indent=1).encode()
        )
        _drop_old(folder.parent)
    torch.distributed.barrier()


def find_checkpoint(out: Path) -> tuple[Path, TrainingState] | None:
    """The newest finished checkpoint under `out` and its state; raises `UserError` when a file is not whole."""
    finished = sorted((out / FOLDER).glob(f"step_*/{STATE_FILE}"))
    if not finished:
        return None
    folder = finished[-1].parent
    remedy = f"remove {folder} to continue from the checkpoint before it"
    try:
        state = TrainingState.model_validate_json(finished[-1].read_bytes())
    except ValidationError as error:
        raise UserError(f"{finished[-1]}: not the state of a checkpoint; {remedy}") from error
    for name, size in state.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path}: missing or not {size} bytes long, as it was written; {remedy}")
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
        raise UserError(
            f"{folder}: a checkpoint with {key} {before}, now {now}{more}; set it back or give another --out"
        )
    parts = found.zero_stage > 0 or wanted.zero_stage > 0
    if parts and (found.world_size, found.zero_stage) != (wanted.world_size, wanted.zero_stage):
        raise UserError(
            f"{folder}: written by {found.world_size} processes with ZeRO {found.zero_stage}, these are "
            f"{wanted.world_size} with ZeRO {wanted.zero_stage}; use the same or give another --out"
        )


def load_checkpoint(engine: Any, folder: Path) -> None:
    """Put parameters, optimizer, scheduler and loss scale back as they were; frozen parameters stay as they are."""
    loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
    if loaded is None:
        raise UserError(f"{folder}: DeepSpeed finds no checkpoint here; remove it to continue from the one before it")


def save_trained(module: torch.nn.Module, path: Path, processes: Processes) -> None:
    """Write the trained parameters, by their names in the student, to a safetensors file.

    They are the weights the student computes with: 16-bit under fp16 and bf16. Every process calls this.
    """
    import deepspeed

    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    partitioned = [p for p in trainable.values() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        if processes.rank == 0:
            tensors = {name: p.detach().to("cpu", copy=True).contiguous() for name, p in trainable.items()}
            write_atomically(path, save(tensors))
    torch.distributed.barrier()


def _drop_old(folder: Path) -> None:
    finished = sorted(state.parent for state in folder.glob(f"step_*/{STATE_FILE}"))
    for old in set(folder.glob("step_*")) - set(finished[-CHECKPOINTS_KEPT:]):
        # The record goes first, so that a removal cut short leaves no checkpoint that looks whole.
        (old / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(old)
