"""The caches of a comparison, built by `teacher-cache build`: what is trained on, and exact logits of held-out rows."""

import subprocess
import sys
from collections.abc import Collection

import torch

from experiments.worth.plan import LONG_ROWS, ROOT, WorthFolder, WorthPlan

TRAIN = {"hidden.preset": "default", "teacher.carry": "body", "compute.rows_per_shard": 256}
EXACT = {"targets.mode": "exact", "hidden.preset": "default", "teacher.carry": "head", "compute.rows_per_shard": 256}
HELD_OUT = {"targets.mode": "exact", "hidden.mean": "none", "teacher.carry": "head", "compute.rows_per_shard": 64}


def build_caches(folder: WorthFolder, plan: WorthPlan, trained_on: Collection[str]) -> None:
    """Build the caches of these names and the held-out one, or see that they are there."""
    for name, options in {"train": TRAIN, "train-exact": EXACT, LONG_ROWS: TRAIN}.items():
        if name in trained_on:
            _build(folder, plan, name, "train.parquet", options, plan.shape(name))
    _build(folder, plan, "held-out", "held_out.parquet", HELD_OUT, (plan.held_out, plan.seq_len))


def _build(
    folder: WorthFolder, plan: WorthPlan, name: str, file: str, options: dict[str, object], shape: tuple[int, int]
) -> None:
    rows, seq_len = shape
    common = {
        "corpus.source": f"{plan.corpus}/{file}",
        "teacher.model": plan.teacher,
        "rows.seq_len": seq_len,
        "rows.count": rows,
        "compute.batch_size": max(1, 32 * plan.seq_len // seq_len),
        "out": folder.cache(name),
    }
    words = [f"--{key}={value}" for key, value in {**common, **options}.items()]
    command = [*_launcher(), "-m", "teacher_cache", "build", *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)  # noqa: S603 - our own module


def _launcher() -> list[str]:
    """Python, or a builder per GPU where there are several."""
    gpus = torch.cuda.device_count()
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    return [sys.executable, *(several if gpus > 1 else [])]
