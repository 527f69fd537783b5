"""Students that begin as their teacher, in stages, under every stage of ZeRO: two processes of each agree with one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from student.train.job import run_job
from student.train.processes import Processes
from tests.helpers.several_jobs import launch, run, stage_file
from tests.helpers.small_training import small_settings, trace
from tests.helpers.transplant_cache import make_transplant_cache

STAGES = (
    "--stages=[{train: mixers, loss: transfer, steps: 3, learning_rate: 1.0e-2}, "
    "{steps: 2, body_learning_rate: 1.0e-3}, {train: body, steps: 1}]"
)
COMMON = ["--model.window=8", "--optimizer.learning_rate=3e-3", "--optimizer.weight_decay=0.1", STAGES]
ALONE = ["--training.micro_batch_size=2", "--training.gradient_accumulation=2"]
TWO = ["--training.micro_batch_size=1", "--training.gradient_accumulation=2"]
PRECISIONS = {"transplant": "bf16", "hybrid": "fp32"}
ROUNDING = {"fp32": 1e-5, "bf16": 2**-6}
"""Largest relative difference: gradients are summed in another order, in 16 bits through three layers of softmax."""
RESUMED = {"transplant": 2, "hybrid": 3}
"""ZeRO stages of runs that are broken off, and go on in two processes."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transplant_cache(tmp_path_factory.mktemp("zero stages"))


def options(deepspeed: Path, preset: str, *more: str) -> list[str]:
    precision = f"--training.precision={PRECISIONS[preset]}"
    channels = "--distillation.frobenius.channels=mapped"
    return [f"--deepspeed={deepspeed}", f"--model.preset={preset}", precision, channels, *COMMON, *more]


@pytest.fixture(scope="module")
def two_processes(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes have left of many runs."""
    folder = tmp_path_factory.mktemp("two")
    files = [stage_file(folder, stage) for stage in range(4)]

    def job(name: str, chosen: list[str], stop_at: int | None = None) -> dict[str, Any]:
        return {"cache": str(cache), "out": str(folder / name), "options": chosen, "stop_at": stop_at}

    jobs = [
        job(f"{preset} {stage}", options(file, preset, *TWO))
        for preset in PRECISIONS
        for stage, file in enumerate(files)
    ]
    for preset, stage in RESUMED.items():
        chosen = options(files[stage], preset, *TWO)
        jobs += [job(f"{preset} resumed", chosen, stop_at) for stop_at in (2, 5, None)]
    launch(folder, {"stages": [], "jobs": jobs})
    return folder


@pytest.mark.parametrize("preset", PRECISIONS)
def test_every_zero_stage_with_two_processes_trains_to_the_trace_of_one_without(
    cache: Path, two_processes: Path, alone: Processes, tmp_path: Path, preset: str
) -> None:
    chosen = options(stage_file(tmp_path, 0), preset, *ALONE)
    run_job(small_settings(*chosen), cache, tmp_path / "one", alone)
    expected = trace(tmp_path / "one")
    assert [line["stage"] for line in expected] == [1, 1, 1, 2, 2, 3]
    for stage in range(4):
        found = trace(two_processes / f"{preset} {stage}")
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=ROUNDING[PRECISIONS[preset]])


@pytest.mark.parametrize("preset", PRECISIONS)
def test_a_run_stopped_in_a_stage_and_at_its_border_is_never_stopped(two_processes: Path, preset: str) -> None:
    resumed, whole = two_processes / f"{preset} resumed", two_processes / f"{preset} {RESUMED[preset]}"
    assert trace(resumed) == trace(whole)
    ours, theirs = (load_file(folder / "checkpoints/step_00000006/states.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_changes_its_zero_stage_behind_a_border(
    cache: Path, two_processes: Path, alone: Processes, tmp_path: Path
) -> None:
    three, one = (options(stage_file(tmp_path, stage), "hybrid", *ALONE) for stage in (3, 1))
    out = tmp_path / "run"
    run({"cache": str(cache), "out": str(out), "options": three, "stop_at": 5}, alone)
    run_job(small_settings(*one), cache, out, alone)
    for ours, theirs in zip(trace(out), trace(two_processes / "hybrid 0"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
