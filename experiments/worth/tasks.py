"""What a trained student can do, by `student-eval --tasks`, beside its teacher."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.worth.plan import ROOT

STUDENT_EVAL = "from student.cli.evaluate import main; main()"
"""The console script, which is not there where this tree is not installed."""


def measure_tasks(run: Path, held_out: Path, names: str = "all") -> dict[str, Any]:
    """What `student-eval` finds a finished run to do, on text of the held-out cache, without single examples."""
    options = ["--tasks", names, "--cache", str(held_out), "--json"]
    command = [sys.executable, "-c", STUDENT_EVAL, str(run), *options]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - our own module
    found = json.loads(done.stdout)
    tasks = [{name: value for name, value in each.items() if "by_example" not in name} for each in found["tasks"]]
    return {"tasks": tasks, "writing": found["writing"]}
