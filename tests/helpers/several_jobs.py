"""Runs training jobs one after another in the processes that a launcher started: `several_jobs.py JOBS.json`.

The file has "stages", DeepSpeed files to check states under, and "jobs", each {"cache", "out", "options", "stop_at"}:
options as `student-train` takes them, which name the caches where "cache" is null, stop_at the number of steps after
which the job is broken off, or null; and "causal" if its student is a model of transformers.
Starting processes takes seconds, a job of this size takes one.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from student.run.student import DTYPES
from student.train import loop
from student.train.checkpoint import restore_learning_rate
from student.train.engine import backward, deepspeed_config, make_engine
from student.train.job import run_job
from student.train.master_states import gathered_states, restore_states
from student.train.processes import Processes, joined_processes, quiet_deepspeed
from student.train.step_log import StepMetrics
from tests.helpers import ROOT
from tests.helpers.causal_students import causal_settings
from tests.helpers.small_training import small_settings


class BrokenOff(BaseException):
    """Raised by every process at the same step, as a launcher would end them all."""


def stage_file(folder: Path, stage: int, **fp16: Any) -> Path:
    """A DeepSpeed JSON of a ZeRO stage; keyword arguments are more of its fp16 section."""
    path = folder / f"zero{stage}.json"
    scale = {"initial_scale_power": 8, "hysteresis": 1, **fp16}
    # Of ZeRO 3: split every parameter, however small.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    path.write_text(json.dumps({"zero_optimization": zero, "fp16": scale}))
    return path


def launch(folder: Path, jobs: dict[str, Any]) -> None:
    """Run the jobs in two processes."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("LOCAL_RANK", None)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.helpers.several_jobs",
    ]
    done = subprocess.run(
        [sys.executable, *command, str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def let_fp16_run_on_a_cpu(patch: pytest.MonkeyPatch) -> None:
    """DeepSpeed refuses fp16 on CPUs without instructions for it; torch computes it there all the same."""
    from deepspeed.accelerator import get_accelerator

    patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)


def run(job: dict[str, Any], processes: Processes) -> None:
    """One job, to its end or to where it is broken off."""
    next_step = loop.next_step

    def breaking_off(*arguments: Any) -> StepMetrics:
        metrics = next_step(*arguments)
        if metrics.step == job["stop_at"]:
            raise BrokenOff
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "next_step", breaking_off)
        with contextlib.suppress(BrokenOff):
            settings = causal_settings if job.get("causal") else small_settings
            run_job(settings(*job["options"]), job["cache"], Path(job["out"]), processes)


def check_states_of_odd_sizes(deepspeed: Path, precision: str, processes: Processes) -> None:
    """What one engine gives up puts another where the first is, to the bit, where no parameter divides evenly."""
    settings = small_settings(f"--deepspeed={deepspeed}", f"--training.precision={precision}")
    config = deepspeed_config(settings, world_size=processes.world_size, out=Path())
    dtype = DTYPES[precision]

    def engine(seed: int) -> Any:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)).to(dtype)
        return make_engine(module, settings, config, lambda step: 0.9**step)

    def learn(engine: Any, count: int) -> None:
        for number in range(2 * count):
            inputs = torch.tensor([[1.0, number, processes.rank]], dtype=dtype)
            backward(engine, engine(inputs).float().square().sum())
            engine.step()

    first, second = engine(1), engine(2)
    learn(first, 2)
    given = {name: whole.clone() for name, whole in gathered_states(first, updates=2)}
    restore_states(second, given.__getitem__, updates=2)
    restore_learning_rate(second, 2)
    learn(first, 1)
    learn(second, 1)
    ours, theirs = (dict(gathered_states(engine, updates=3)) for engine in (first, second))
    assert len(ours) == 12
    for name, whole in ours.items():
        assert whole.dtype == torch.float32
        assert torch.equal(whole, theirs[name]), name
        assert not torch.equal(whole, given[name]), name


def main() -> None:
    """Run the jobs of the file named on the command line, after a check in each stage and precision."""
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with quiet_deepspeed(), pytest.MonkeyPatch.context() as patch, joined_processes() as processes:
        let_fp16_run_on_a_cpu(patch)
        for deepspeed in jobs["stages"]:
            for precision in DTYPES:
                check_states_of_odd_sizes(Path(deepspeed), precision, processes)
        for job in jobs["jobs"]:
            run(job, processes)


if __name__ == "__main__":
    main()
