"""What a step of each student takes with nothing else on its GPU; the trainings themselves may share one."""

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from delta_common.files import write_atomically
from experiments.worth.plan import ROOT
from experiments.worth.training import Training, read_lines, start_worker, student_train

STEPS, SETTLING = 48, 16
"""Steps that are taken, and those of them before the ones that count."""


@dataclass(frozen=True)
class Timing:
    """A few steps of a student's distillation."""

    training: Training

    @property
    def words(self) -> str:
        """Its name on the progress line."""
        return f"{self.training.kind.name}, timed"

    @property
    def result(self) -> Path:
        """File of seconds per step and tokens per second."""
        return self.training.folder.results / f"{self.training.kind.name}-alone.json"

    @property
    def run(self) -> Path:
        """Folder of `student-train`."""
        return self.training.folder.path / "runs" / f"{self.training.kind.name}-alone"

    @property
    def is_done(self) -> bool:
        """Whether it was measured before."""
        return self.result.exists()

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a process that measures it."""
        return start_worker(self.training, self.run, environment, "--timed")

    def carry_out(self) -> None:
        """Train a few steps, and write the result."""
        kind = self.training.kind
        shutil.rmtree(self.run, ignore_errors=True)
        command = student_train(self.training, self.run, {"training.max_steps": STEPS, "stages": "[]"})
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)  # noqa: S603 - our own module
        costs = read_lines(self.run / "costs.jsonl")
        counted = costs[min(SETTLING, len(costs) // 2) :]
        seconds = statistics.median(each["seconds"] for each in counted)
        tokens = statistics.median(each["tokens"] for each in counted)
        found = {"name": kind.name, "seconds": seconds, "tokens_per_second": tokens / seconds}
        found |= {"mfu": counted[-1]["mfu"], "peak_bytes": costs[-1]["peak_bytes"], "machine": costs[-1]["machine"]}
        write_atomically(self.result, json.dumps(found, indent=1).encode())
