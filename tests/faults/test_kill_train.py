"""Training killed with SIGKILL, then run again, leaves the same bytes as training that was never disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.small_training import make_uneven_cache
from tests.helpers.transplant_cache import make_transplant_cache


@pytest.mark.timeout(3600)
def test_killed_anywhere_then_continued_is_byte_identical(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--kills")
    killed_training(make_uneven_cache(tmp_path / "cache"), tmp_path, kills)


@pytest.mark.timeout(3600)
def test_killed_around_the_border_of_two_stages_too(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A student that begins as its teacher: 12 steps of attention transfer, then 12 of everything, in 16 bits."""
    stages = "--stages=[{train: mixers, loss: transfer, steps: 12}, {steps: 12, body_learning_rate: 1.0e-3}]"
    options = ["--model.preset=hybrid", "--model.window=8", "--training.precision=bf16", stages]
    kills = max(4, request.config.getoption("--kills") // 3)
    killed_training(make_transplant_cache(tmp_path), tmp_path, kills, *options)


def killed_training(cache: Path, folder: Path, kills: int, *options: str) -> None:
    script = Path(__file__).with_name("killed_training.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(script), str(cache), str(folder / "sound"), str(folder / "out"), str(kills), "7", *options]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["killed"] == kills
    assert counted["killed_between_steps"] >= kills // 4, "training was hardly ever under way when it was killed"
