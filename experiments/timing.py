"""What a step costs, of cross-entropy alone, cached and online distillation: `python -m experiments.timing FOLDER`.

In one process, step by step after each other, so that a machine that is busy for a while slows all of them.
"""

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cli_common.errors import run_command
from cli_common.files import write_atomically
from experiments.one import TIMED, Job, Training
from experiments.plan import Folder
from experiments.variants import all_variants
from student.engine import Processes, joined_processes, quiet_deepspeed

WARM_STEPS = 5
"""Steps that are not counted: kernels are chosen and memory is found in them."""
STEPS = 25


def time_steps(folder: Folder, processes: Processes) -> dict[str, float]:
    """Median seconds of a step, by variant, of training alone in the machine."""
    plan = folder.plan()
    plan = replace(plan, epochs=-(-(WARM_STEPS + STEPS) // (plan.rows // plan.batch)))
    trainings = {name: Training(Job(folder, plan, all_variants()[name], seed=0), processes) for name in TIMED.values()}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    with ExitStack() as stack:
        for training in trainings.values():
            stack.enter_context(training)
        for step in range(WARM_STEPS + STEPS):
            for name, training in trainings.items():
                seconds[name].append(training.step(step)[1])
    return {name: statistics.median(found[WARM_STEPS:]) for name, found in seconds.items()}


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = Folder(parser.parse_args().folder)

    def call() -> None:
        with quiet_deepspeed(), joined_processes() as processes:
            found = time_steps(folder, processes)
        write_atomically(folder.timing, json.dumps(found, indent=1).encode())

    sys.exit(run_command("experiments", call))


if __name__ == "__main__":
    main()
