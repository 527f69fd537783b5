"""The GPU's benchmark of keeping targets at a tiny size, on whatever device there is."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT


def test_keeping_targets_is_timed_beside_the_head(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.gpu.targets", "--tiny", "--positions", "16", "32", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(output)], capture_output=True, text=True, timeout=200, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    assert [row["positions"] for row in rows] == [16, 32]
    for row in rows:
        assert {"head", "torch", "naive"} <= row["seconds"].keys()
        assert min(row["kept_over_head"], row["torch_over_kept"], row["naive_over_kept"]) > 0
