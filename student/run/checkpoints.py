"""Checkpoints as they lie in a run's folder: where training stands, and which of them is the newest whole one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from pydantic import ConfigDict, Field

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.settings_file import FrozenSettings
from student.data.order import ShuffleSizes

FOLDER = "checkpoints"
STATE_FILE = "state.json"
TENSORS_FILE = "states.safetensors"
PARAMETER = "parameter"
"""Tensors of a checkpoint are called `parameter/NAME`, and so with AdamW's moments."""
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
    """Updates since the start of the stage of the next step."""
    epoch_updates: int = 0
    """Updates since the start of the epoch of the next step; a stage begins with an epoch of its own."""
    earlier_updates: int = 0
    """Updates of the stages before."""

    @property
    def skipped(self) -> int:
        """Steps without an update since the start of training."""
        return self.steps - self.updates - self.earlier_updates

    def after_step(self, *, applied: bool, ends_epoch: bool) -> "Progress":
        """The progress one step later, in the same stage."""
        epoch_updates = 0 if ends_epoch else self.epoch_updates + applied
        return Progress(self.steps + 1, self.updates + applied, epoch_updates, self.earlier_updates)

    def in_next_stage(self) -> "Progress":
        """The same progress, where the next step is the first of a stage."""
        return Progress(self.steps, earlier_updates=self.earlier_updates + self.updates)


class MixedCache(FrozenSettings):
    """One of several caches that a run trains on."""

    path: str
    """Where it lay."""
    fingerprint: str
    share: float
    """Of the rows."""
    window_shards: int
    """Shards' worth of rows that are decoded at one time."""
    pool_shards: int | None = None
    """Shards whose rows are permuted together; None where an earlier version had no pools."""

    @property
    def sizes(self) -> ShuffleSizes:
        """What the order of rows follows."""
        return ShuffleSizes.recorded(self.window_shards, self.pool_shards)


class TrainingState(FrozenSettings):
    """Where training stands; `state.json` of a checkpoint."""

    model_config = ConfigDict(populate_by_name=True)

    step: int
    """Steps taken: global batches read."""
    stage: int = 1
    """Stage of the next step, from 1."""
    updates: int
    """Steps of that stage that changed the parameters."""
    epoch_updates: int
    """Of these, those since the start of the epoch of the next step."""
    earlier_updates: int = 0
    """Steps of the stages before that changed the parameters."""
    epoch: int
    """Epoch of the next step."""
    batch: int = Field(alias="position")
    """The global batch of that epoch that the next step reads, from 0; `position` in the file."""
    cache_fingerprint: str
    """sha256 of the manifest of the cache trained on."""
    window_shards: int = Field(default=4, ge=1)
    """Shards' worth of rows that are decoded at one time; 4 where an earlier version did not say."""
    pool_shards: int | None = Field(default=None, ge=1)
    """Shards whose rows are permuted together; None where an earlier version had no pools."""
    caches: tuple[MixedCache, ...] = ()
    """Of several caches all of them; the first one is also named above."""
    settings: dict[str, Any]
    """The settings that decide the numbers."""
    loss_scale: dict[str, float | None] = Field(default_factory=dict)
    """fp16's dynamic loss scale and its counters."""
    tensors_bytes: int = 0
    """Size of the file of tensors."""
    tensors_xxh3_128: str = ""
    """Its digest."""

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the caches trained on."""
        return tuple(cache.fingerprint for cache in self.caches) or (self.cache_fingerprint,)

    @property
    def sizes(self) -> tuple[ShuffleSizes, ...]:
        """What the order of rows follows, by cache."""
        alone = ShuffleSizes.recorded(self.window_shards, self.pool_shards)
        return tuple(cache.sizes for cache in self.caches) or (alone,)

    @property
    def progress(self) -> Progress:
        return Progress(self.step, self.updates, self.epoch_updates, self.earlier_updates)


Checkpoint = tuple[Path, TrainingState]
"""A checkpoint's folder and its state."""


def find_checkpoint(out: Path) -> Checkpoint | None:
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


def digest_of(path: Path) -> str:
    """The xxh3 digest of a file, 128 bits in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(DIGEST_BLOCK):
            digest.update(block)
    return digest.hexdigest()
