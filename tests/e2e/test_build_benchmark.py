"""The benchmark of a build at a tiny size: it runs, and gives every figure that is promised."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

PROMISED = {
    "build_over_teacher",
    "two_processes_over_one",
    "encode_share",
    "memory_over_teacher",
    "memory_last_over_first",
    "restart_over_load",
}


def test_every_figure_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    sizes = ["--tiny", "--rows", "16", "--rounds", "1", "--restarts", "1"]
    command = [sys.executable, "-m", "benchmarks.build", *sizes, "--json", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert all(math.isfinite(figures[name]) and figures[name] > 0 for name in PROMISED)
    assert figures["encode_share"] < 1
    assert {"torch", "threads", "seed", "batch_size"} <= figures["setup"].keys()
    assert set(figures["rounds"][0]) == {"teacher", "one", "two"}
    assert all(name in done.stdout for name in PROMISED)
