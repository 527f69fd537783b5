"""The benchmark of generation at a tiny size: it runs, and gives every figure that is promised."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

OF_ONE = ("seconds_a_token", "tokens_per_second", "peak_bytes")
PROMISED = {f"{model}_{figure}" for model in ("student", "teacher") for figure in OF_ONE} | {
    "time_teacher_over_student",
    "student_prompt_tokens_per_second",
    "student_state_bytes",
    "teacher_cache_bytes",
}


@pytest.mark.parametrize("options", [[], ["--preset", "hybrid"]])
def test_every_figure_is_measured(tmp_path: Path, options: list[str]) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.generate", "--tiny", "--repeats", "1", "--json", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert [found["context"] for found in figures["contexts"]] == [16, 64]
    for found in figures["contexts"]:
        assert found.keys() == PROMISED | {"context"}
        assert all(math.isfinite(value) and value > 0 for value in found.values())
    short, long = figures["contexts"]
    assert short["student_state_bytes"] == long["student_state_bytes"]
    assert long["teacher_cache_bytes"] == 4 * short["teacher_cache_bytes"]
    assert figures["student_state_longest_over_shortest"] == 1
    assert {"torch", "transformers", "threads", "seed"} <= figures["setup"].keys()
    assert all(name in done.stdout for name in PROMISED)
