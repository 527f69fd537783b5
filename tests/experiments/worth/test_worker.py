"""A process carries out the training that its command line names."""

import sys
from pathlib import Path

import pytest

from experiments.worth import worker
from experiments.worth.plan import WorthFolder
from experiments.worth.training import Training
from tests.helpers.worth_results import PLAN


def test_the_named_student_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Training] = []
    monkeypatch.setattr(Training, "carry_out", lambda training: trained.append(training))
    WorthFolder(tmp_path).settle(PLAN)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path), "hybrid", "43"])
    worker.main()
    assert [(training.kind.name, training.seed, training.plan) for training in trained] == [("hybrid", 43, PLAN)]
