"""What a step of cross-entropy alone, of cached and of online distillation costs.

One process takes their steps in turns, so that a machine that is busy for a while slows all of them.
"""

import statistics
from contextlib import ExitStack
from dataclasses import replace

from experiments.plan import Folder
from experiments.train.training import TIMED, Training, VariantJob
from experiments.variants import all_variants
from student.train.processes import Processes

WARM_STEPS = 5
"""Steps that do not count: kernels are chosen and memory is allocated in them."""
STEPS = 25


def time_steps(folder: Folder, processes: Processes) -> dict[str, float]:
    """Median seconds per step, by variant, with nothing else running."""
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
