"""Steps are timed in turns, and those that warm up do not count."""

from pathlib import Path
from typing import Any, Self, cast

import pytest

from experiments.plan import ExperimentPlan, Folder
from experiments.train import timing
from experiments.train.timing import STEPS, WARM_STEPS, time_steps
from experiments.train.training import VariantJob

PLAN = ExperimentPlan("none", None, 8, rows=8, held_out=4, epochs=1, batch=4, options=())
SECONDS = {"ce": 1.0, "delta": 2.0, "online": 3.0}


class Timed:
    """A training whose steps each take a known time longer than the one before."""

    taken: list[tuple[str, int]]
    plans: list[ExperimentPlan]

    def __init__(self, job: VariantJob, processes: object) -> None:
        self._name = job.variant.name
        Timed.plans.append(job.plan)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, step: int) -> tuple[None, float]:
        Timed.taken.append((self._name, step))
        return None, SECONDS[self._name] * step


def test_medians_of_steps_taken_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Timed.taken, Timed.plans = [], []
    monkeypatch.setattr(timing, "Training", Timed)
    folder = Folder(tmp_path)
    folder.settle(PLAN)
    middle = WARM_STEPS + (STEPS - 1) // 2
    assert time_steps(folder, cast(Any, None)) == {name: seconds * middle for name, seconds in SECONDS.items()}
    assert Timed.taken == [(name, step) for step in range(WARM_STEPS + STEPS) for name in SECONDS]
    assert all(plan.steps >= WARM_STEPS + STEPS for plan in Timed.plans)
