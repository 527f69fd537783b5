"""A training by `student-train`, and the small result that is kept of it."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from delta_common.files import write_atomically
from experiments.options import FIRST_SEED
from experiments.worth.plan import ROOT, WorthFolder, WorthPlan, code_digest
from experiments.worth.students import EXAMINED, Kind
from experiments.worth.tasks import measure_tasks

MEASURES = ("cross_entropy", "kl", "agreement", "calibration_error")


@dataclass(frozen=True)
class Training:
    """One student with one seed."""

    folder: WorthFolder
    plan: WorthPlan
    kind: Kind
    seed: int

    @property
    def words(self) -> str:
        return f"{self.kind.name}, seed {self.seed}"

    @property
    def run(self) -> Path:
        """Folder of `student-train`."""
        return self.folder.path / "runs" / f"{self.kind.name}-seed-{self.seed}"

    @property
    def result(self) -> Path:
        """File of what is kept."""
        return self.folder.results / f"{self.kind.name}-seed-{self.seed}.json"

    @property
    def tasks(self) -> Path | None:
        """File of what the student can do; None where that is not asked."""
        asked = self.kind in EXAMINED and self.seed == FIRST_SEED
        return self.folder.results / f"{self.kind.name}-tasks.json" if asked else None

    @property
    def is_done(self) -> bool:
        return self.result.exists() and (self.tasks is None or self.tasks.exists())

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a process that trains and writes the result."""
        return start_worker(self, self.run, environment)

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        rows, _ = self.plan.shape(self.kind.cache)
        return rows // self.kind.rows

    def command(self) -> list[str]:
        """`student-train` with all it is given."""
        measured = {
            "evaluation.cache": self.folder.cache("held-out"),
            "evaluation.every": max(1, self.steps // self.plan.points),
        }
        return student_train(self, self.run, measured)

    def carry_out(self) -> None:
        """Run `student-train` where it has not finished yet, and keep the result; then measure tasks where asked."""
        if not (self.run / "summary.json").exists():
            subprocess.run(self.command(), cwd=ROOT, check=True)  # noqa: S603 - our own module
        write_atomically(self.result, json.dumps(self.read_run(), indent=1).encode())
        if self.tasks is not None:
            found = {"name": self.kind.name} | measure_tasks(self.run, self.folder.cache("held-out"))
            write_atomically(self.tasks, json.dumps(found, indent=1).encode())

    def read_run(self) -> dict[str, Any]:
        """What is kept of a finished run."""
        summary = json.loads((self.run / "summary.json").read_text())
        costs = {each["step"]: each for each in read_lines(self.run / "costs.jsonl")}
        points = [
            {"step": each["step"], "tokens": _tokens(costs, each["step"])} | {name: each[name] for name in MEASURES}
            for each in read_lines(self.run / "evaluation.jsonl")
        ]
        return {
            "name": self.kind.name,
            "seed": self.seed,
            "code": code_digest(),
            "points": points,
            "trainable_parameters": summary["trainable_parameters"],
            "total_parameters": summary["total_parameters"],
            "teacher": summary["teacher_measures"],
            "samples": summary["samples"],
            "steps": summary["steps"],
            "machine": next(iter(costs.values()))["machine"],
            "versions": {"python": platform.python_version(), "transformers": version("transformers")},
        }


def start_worker(
    training: Training, run: Path, environment: dict[str, str], *options: str
) -> "subprocess.Popen[bytes]":
    """Start a process for the training; what `student-train` says goes to a log beside the folder `run`."""
    run.parent.mkdir(parents=True, exist_ok=True)
    words = [str(training.folder.path), training.kind.name, str(training.seed), *options]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "experiments.worth.worker", *words],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
        )


def student_train(training: Training, out: Path, more: dict[str, object]) -> list[str]:
    """The command of a training, with settings beside those of its kind."""
    options = {
        **dict(training.kind.options),
        "training.micro_batch_size": training.kind.rows,
        "training.checkpoint_every": 1_000_000,
        "training.seed": training.seed,
        "training.epochs": 1,
        "training.precision": "bf16" if torch.cuda.is_available() else "fp32",
        **more,
    }
    given = [*(f"--{key}={value}" for key, value in options.items()), *training.plan.options]
    config = str(ROOT / "configs" / training.kind.config)
    cache = str(training.folder.cache(training.kind.cache))
    return [sys.executable, "-m", "student", "--cache", cache, "--config", config, "--out", str(out), *given]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file with one on each line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _tokens(costs: dict[int, dict[str, Any]], step: int) -> int:
    return sum(int(each["tokens"]) for number, each in costs.items() if number <= step)
