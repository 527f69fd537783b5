"""A process carries out the training that its command line names."""

import sys
from pathlib import Path

import pytest

from experiments.worth import worker
from experiments.worth.plan import WorthFolder
from experiments.worth.timing import Timing
from experiments.worth.training import Training
from tests.helpers.worth_results import PLAN


@pytest.mark.parametrize("options", [[], ["--timed"]])
def test_the_named_student_is_trained_or_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    trained: list[Training] = []
    timed: list[Training] = []
    monkeypatch.setattr(Training, "carry_out", lambda training: trained.append(training))
    monkeypatch.setattr(Timing, "carry_out", lambda timing: timed.append(timing.training))
    WorthFolder(tmp_path).settle(PLAN)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path), "hybrid", "43", *options])
    worker.main()
    found, none = (timed, trained) if options else (trained, timed)
    assert [(training.kind.name, training.seed, training.plan) for training in found] == [("hybrid", 43, PLAN)]
    assert not none
