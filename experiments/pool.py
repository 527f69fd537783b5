"""Trainings as processes, some at a time; what has its result is not trained again."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cli_common.progress import ProgressLine
from experiments.plan import Folder

ROOT = Path(__file__).parents[1]
LOOK_EVERY = 0.2


@dataclass(frozen=True)
class Task:
    """A training that `experiments.one` carries out."""

    folder: Folder
    variant: str
    seed: int
    timing: bool = False

    @property
    def out(self) -> Path:
        return self.folder.timing(self.variant) if self.timing else self.folder.run(self.variant, self.seed)

    @property
    def is_done(self) -> bool:
        return (self.out / "result.json").exists()

    def start(self, threads: int) -> "subprocess.Popen[bytes]":
        """Its process, with its words in `log.txt`."""
        self.out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.one", str(self.folder.path), self.variant, str(self.seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (self.out / "log.txt").open("wb") as log:
            return subprocess.Popen(  # noqa: S603
                command + ["--timing"] * self.timing, cwd=ROOT, stdout=log, stderr=log, env=environment
            )


def run_tasks(tasks: Iterable[Task], jobs: int, seconds: float = math.inf) -> list[Task]:
    """Carry out those that are not done, `jobs` at a time, and start none after so many seconds; those that failed."""
    last_start = time.monotonic() + seconds
    waiting = [task for task in tasks if not task.is_done]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[Task, subprocess.Popen[bytes]] = {}
    failed, count, finished = [], len(waiting), 0
    try:
        with ProgressLine("trainings", max(1, count)) as line:
            while running or (waiting and time.monotonic() < last_start):
                is_late = time.monotonic() >= last_start
                while waiting and len(running) < jobs and not is_late:
                    task = waiting.pop(0)
                    running[task] = task.start(threads)
                time.sleep(LOOK_EVERY)
                for task in [task for task, process in running.items() if process.poll() is not None]:
                    if running.pop(task).returncode or not task.is_done:
                        failed.append(task)
                    finished += 1
                    line.update(finished, f"{task.variant}, seed {task.seed}")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed
