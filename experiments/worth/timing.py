"""What a step of each student takes with nothing beside it; the trainings themselves may share a machine."""

import json
import shutil
import statistics
import subprocess
import sys

from delta_common.files import write_atomically
from experiments.worth.plan import ROOT
from experiments.worth.training import Training, read_lines, student_train

STEPS, SETTLING = 48, 16
"""Steps that are taken, and those of them before the ones that count."""


def time_alone(training: Training) -> None:
    """Write seconds per step and tokens per second of the student's distillation, unless they are there."""
    file = training.folder.results / f"{training.kind.name}-alone.json"
    if file.exists():
        return
    out = training.folder.path / "runs" / f"{training.kind.name}-alone"
    shutil.rmtree(out, ignore_errors=True)
    command = student_train(training, out, {"training.max_steps": STEPS, "stages": "[]"})
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)  # noqa: S603 - our own module
    costs = read_lines(out / "costs.jsonl")
    counted = costs[min(SETTLING, len(costs) // 2) :]
    seconds = statistics.median(each["seconds"] for each in counted)
    tokens = statistics.median(each["tokens"] for each in counted)
    found = {"name": training.kind.name, "seconds": seconds, "tokens_per_second": tokens / seconds}
    found |= {"mfu": counted[-1]["mfu"], "peak_bytes": costs[-1]["peak_bytes"], "machine": costs[-1]["machine"]}
    write_atomically(file, json.dumps(found, indent=1).encode())
