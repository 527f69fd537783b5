"""Trainings as processes, several at a time, spread over GPUs; one that has its result is not trained again."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from delta_common.progress import ProgressLine
from experiments.plan import Folder

ROOT = Path(__file__).parents[1]
LOOK_EVERY = 0.2


class Startable(Protocol):
    """A training in a process of its own."""

    @property
    def words(self) -> str:
        """What it is called."""

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start its process, with these variables beside the others."""


OneTask = TypeVar("OneTask", bound=Startable)


@dataclass(frozen=True)
class Task:
    """A training that `experiments.worker` carries out."""

    folder: Folder
    variant: str
    seed: int

    @property
    def out(self) -> Path:
        return self.folder.run(self.variant, self.seed)

    @property
    def words(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def is_done(self) -> bool:
        return (self.out / "result.json").exists()

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start its process, whose output goes to `log.txt`."""
        self.out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.worker", str(self.folder.path), self.variant, str(self.seed)]
        with (self.out / "log.txt").open("wb") as log:
            return subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment
            )


def run_tasks(tasks: Iterable[OneTask], jobs: int, seconds: float = math.inf) -> list[OneTask]:
    """Run the tasks not done yet, `jobs` at a time; start none after `seconds`. Return those that failed."""
    last_start = time.monotonic() + seconds
    waiting = [task for task in tasks if not task.is_done]
    running: dict[int, tuple[OneTask, subprocess.Popen[bytes]]] = {}
    failed, count, finished = [], max(1, len(waiting)), 0
    try:
        with ProgressLine("trainings", count) as line:
            while running or (waiting and time.monotonic() < last_start):
                for slot in set(range(jobs)) - running.keys():
                    if waiting and time.monotonic() < last_start:
                        task = waiting.pop(0)
                        running[slot] = (task, task.start(share_of_machine(slot, jobs)))
                time.sleep(LOOK_EVERY)
                for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                    task, process = running.pop(slot)
                    failed += [task] if process.returncode or not task.is_done else []
                    finished += 1
                    line.update(finished, task.words)
    finally:
        _stop([process for _, process in running.values()])
    return failed


def share_of_machine(slot: int, jobs: int) -> dict[str, str]:
    """Environment of one of several processes: its share of the cores, and its GPU where there are several."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    gpus = torch.cuda.device_count()
    return threads | {"CUDA_VISIBLE_DEVICES": str(slot % gpus)} if gpus > 1 else threads


def _stop(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
