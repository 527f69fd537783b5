"""The benchmark of what is saved where nothing counts, at a tiny size: bytes follow the share that counts."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT


def test_bytes_and_seconds_are_measured(tiny_teacher: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    sizes = ["--teacher", str(tiny_teacher), "--rows", "8", "--seq-len", "100", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.chats.counted", *sizes, "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert 0.35 < figures["bytes_ratio"] <= 0.5
    assert figures["seconds_ratio"] > 0
    assert "bytes_ratio" in done.stdout
