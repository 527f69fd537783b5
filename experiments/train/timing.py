"""What a step costs, of cross-entropy alone, cached and online distillation.

In one process, step by step after each other, so that a machine that is busy for a while slows all of them.
"""

import statistics
from contextlib import ExitStack
from dataclasses import replace

from experiments.plan import Folder
from experiments.train.training import TIMED, Training, VariantJob
from experiments.variants import all_variants
from student.train.processes import Processes

WARM_STEPS = 5
"""Steps that are not counted: kernels are chosen and memory is found in them."""
STEPS = 25


def time_steps(folder: Folder, processes: Processes) -> dict[str, float]:
    """Median seconds of a step, by variant, of training alone in the machine."""
    plan = folder.plan()
    plan = replace(plan, epochs=-(-(WARM_STEPS + STEPS) // (plan.rows // plan.batch)))
    trainings = {
        name: Training(VariantJob(folder, plan, all_variants()[name], seed=0), processes) for name in TIMED.values()
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    with ExitStack() as stack:
        for training in trainings.values():
            stack.enter_context(training)
        for step in range(WARM_STEPS + STEPS):
            for name, training in trainings.items():
                seconds[name].append(training.step(step)[1])
    return {name: statistics.median(found[WARM_STEPS:]) for name, found in seconds.items()}
