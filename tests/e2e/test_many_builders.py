"""One, two and four processes under torchrun, and jobs that share the shards by numbers, make the same cache."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from delta_common.errors import UserError
from teacher_cache.build.job import build
from teacher_cache.cli import app
from teacher_cache.settings import BuildSettings
from tests.helpers.damageable import contents
from tests.helpers.e2e_corpus import write_text_corpus

SHARDS = 8


@pytest.fixture(scope="module")
def config(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    settings = {
        "teacher": {"model": str(tiny_teacher)},
        "corpus": {"source": str(write_text_corpus(folder))},
        "rows": {"seq_len": 32, "count": 8 * SHARDS},
        "targets": {"preset": "small"},
        "compute": {"batch_size": 4, "rows_per_shard": 8},
    }
    path = folder / "build.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    out = config.parent / "alone"
    build(BuildSettings.model_validate(yaml.safe_load(config.read_text())), out)
    return out


def torchrun(processes: int, config: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options]
    command = [*launcher, "--standalone", "-m", "teacher_cache", "build", str(config), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_make_the_bytes_of_one(processes: int, config: Path, alone: Path, tmp_path: Path) -> None:
    with torchrun(processes, config, tmp_path / "cache") as process:
        printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    built = [
        int(line.split(" shards built")[0].split(": ")[1]) for line in printed.splitlines() if "shards built" in line
    ]
    assert sum(built) == SHARDS, printed
    assert contents(tmp_path / "cache") == contents(alone)


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(child) for child in found.split()]


def test_a_worker_that_is_killed_is_started_again(config: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with torchrun(2, config, out, "--max-restarts", "3") as process:
        while process.poll() is None and not list(out.glob("commits/*.json")):
            time.sleep(0.02)
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert contents(out) == contents(alone)


def test_jobs_that_share_the_shards_by_numbers(config: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    for shards in ("5:8", "0:5"):
        app(["build", str(config), "--out", str(out), "--shards", shards], result_action="return_value")
    assert contents(out) == contents(alone)


@pytest.mark.parametrize("shards", ["5", "3:2", "0:9", "a:b", "-1:3"])
def test_shards_that_are_not_there_are_named(shards: str, config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--shards {shards}: "):
        app(["build", str(config), "--out", str(tmp_path / "x"), f"--shards={shards}"], result_action="return_value")
