"""A tiny cache and settings that train in a second, shared by the tests of training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from safetensors.torch import load_file
from torch import Tensor

from delta_common.settings_file import load_settings
from student.settings import TrainSettings
from student.train import step_log
from student.train.assemble import Run
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.commits import CommitRecord
from teacher_cache.format.sealed import digest, seal

ROWS, VOCAB, WIDTH, LENGTH = 32, 64, 32, 12
SMALL = [
    *("--model.blocks=2", "--model.slstm_at=[0]", "--model.heads=4", "--model.qkv_block_size=4"),
    *("--training.micro_batch_size=2", "--training.gradient_accumulation=2", "--training.max_steps=6"),
    *("--training.checkpoint_every=2", "--optimizer.learning_rate=1e-2"),
]


def make_uneven_cache(path: Path) -> Path:
    """A cache whose rows have valid positions in unequal numbers, so that a mean of means shows."""
    sizes = {"rows": ROWS, "seq_len": LENGTH, "vocab_size": VOCAB, "top_k": 8, "hidden_size": WIDTH}
    make_synthetic_cache(path, **sizes, rows_per_shard=8)
    lengths = 1 + (7 * np.arange(ROWS)) % LENGTH
    zarr.open_group(path, mode="r+")["loss_mask"][:] = np.arange(LENGTH)[None, :] < lengths[:, None]
    for commit in (path / "commits").iterdir():
        content = json.loads(commit.read_text())
        del content["digest"]
        for key, stored in content["objects"].items():
            data = (path / key).read_bytes()
            stored |= {"bytes": len(data), "xxh3_128": digest(data)}
        commit.write_bytes(seal(CommitRecord.model_validate(content)))
    return path


def small_settings(
    *overrides: str, deepspeed: Mapping[str, Any] | None = None, folder: Path | None = None
) -> TrainSettings:
    """`SMALL` and overrides; a DeepSpeed JSON is written to the folder."""
    made = load_settings(TrainSettings, None, [*SMALL, *overrides])
    if deepspeed is None or folder is None:
        return made
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(deepspeed))
    return made.model_copy(update={"deepspeed": path})


def trace(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> bytes:
    """A run's trained parameters."""
    return (out / "trained.safetensors").read_bytes()


def newest(out: Path) -> Path:
    """A run's newest checkpoint."""
    return max((out / "checkpoints").iterdir())


def parameters(checkpoint: Path) -> dict[str, Tensor]:
    """The float32 parameters in a checkpoint, by name."""
    tensors = load_file(checkpoint / "states.safetensors")
    return {name.removeprefix("parameter/"): x for name, x in tensors.items() if name.startswith("parameter/")}


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Break training off as soon as this step is recorded."""
    record = step_log.record

    def stopping(run: Run, metrics: step_log.StepMetrics) -> None:
        record(run, metrics)
        if metrics.step == step:
            raise KeyboardInterrupt

    patch.setattr(step_log, "record", stopping)
