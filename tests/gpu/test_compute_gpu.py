"""A batch is started without waiting for the GPU, which is still at the one before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache.build.compute import compute_batch, start_batch
from teacher_cache.build.request import make_manifest
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import GPU_POSITIONS, ShardStatistics
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import load_teacher
from tests.helpers.tiny_teacher import save_tiny_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

ROWS, LENGTH = 8, 64


@pytest.fixture
def _errors_on_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_errors_on_waiting")
@pytest.mark.parametrize("mean", ["int8", "int4", "lossless", "none"])
@pytest.mark.parametrize("targets", [{"preset": "default"}, {"mode": "exact"}])
def test_starting_a_batch_waits_for_nothing(tmp_path: Path, mean: str, targets: dict[str, Any]) -> None:
    (tmp_path / "text.txt").write_text("some words " * 200)
    settings = BuildSettings.model_validate(
        {
            "teacher": {"model": str(save_tiny_teacher(tmp_path / "teacher")), "device": "cuda", "dtype": "bfloat16"},
            "corpus": {"source": str(tmp_path / "text.txt")},
            "rows": {"seq_len": LENGTH, "count": ROWS},
            "targets": targets,
            "hidden": {"mean": mean},
            "compute": {"batch_size": ROWS, "rows_per_shard": ROWS},
        }
    )
    teacher = load_teacher(settings.teacher)
    manifest = make_manifest(settings, teacher, {})
    arrays, statistics = ShardArrays.empty(manifest, range(ROWS)), ShardStatistics(manifest.targets)
    arrays.loss_mask[:] = True
    rounds = GPU_POSITIONS // (ROWS * LENGTH) + 1
    for _ in range(rounds):  # compiles kernels, records the teacher's pass, fills PyTorch's pool of pinned memory
        compute_batch(teacher, arrays, slice(0, ROWS), statistics)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(rounds):
        started = start_batch(teacher, arrays, slice(0, ROWS), statistics)
    torch.cuda.set_sync_debug_mode("default")
    assert set(started.arrived()) <= set(arrays.by_name)
