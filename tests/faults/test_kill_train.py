"""Training killed with SIGKILL, then run again, leaves the same bytes as training that was never disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.small_training import make_uneven_cache


@pytest.mark.timeout(3600)
def test_killed_anywhere_then_continued_is_byte_identical(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills = request.config.getoption("--kills")
    cache = make_uneven_cache(tmp_path / "cache")
    script = Path(__file__).with_name("killed_training.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(script), str(cache), str(tmp_path / "sound"), str(tmp_path / "out"), str(kills), "7"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["killed"] == kills
    assert counted["killed_between_steps"] >= kills // 4, "training was hardly ever under way when it was killed"
