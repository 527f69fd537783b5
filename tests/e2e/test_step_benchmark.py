"""The benchmark of a step at a tiny size: it runs, and gives every figure that is promised."""

import json
import math
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step.py"
PROMISED = {"time_cached_over_ce", "memory_cached_over_ce", "time_online_over_cached", "data_wait_share"}


def test_every_figure_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--repeats", "1", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert figures.keys() >= PROMISED
    assert all(math.isfinite(figures[name]) and figures[name] > 0 for name in PROMISED)
    assert figures["data_wait_share"] < 1
    assert {"torch", "threads", "seed"} <= figures["setup"].keys()
    assert set(figures["seconds"]) == set(figures["peak_bytes"]) == {"ce", "cached", "exact", "online"}
    assert all(name in done.stdout for name in PROMISED)
