"""A process of the experiments does what its command line says: it trains a variant, or it times the steps."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from experiments import worker
from experiments.plan import ExperimentPlan, Folder
from experiments.train import timing, training
from experiments.train.training import VariantJob

PLAN = ExperimentPlan("none", None, 8, rows=8, held_out=4, epochs=1, batch=4, options=())


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[VariantJob]:
    """What is to be trained; nothing is."""
    jobs: list[VariantJob] = []
    monkeypatch.setattr(worker, "joined_processes", lambda: nullcontext("processes"))
    monkeypatch.setattr(worker, "quiet_deepspeed", nullcontext)
    monkeypatch.setattr(training, "train_variant", lambda job, processes: jobs.append(job))
    monkeypatch.setattr(timing, "time_steps", lambda folder, processes: {"ce": 0.5})
    return jobs


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["worker", *arguments])
    with pytest.raises(SystemExit) as ended:
        worker.main()
    return ended.value.code


def test_a_variant_is_trained_with_its_seed(tmp_path: Path, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    Folder(tmp_path).settle(PLAN)
    assert not call(monkeypatch, str(tmp_path), "frobenius", "43")
    (job,) = trained
    assert (job.variant.name, job.seed, job.plan, job.folder.path) == ("frobenius", 43, PLAN, tmp_path)
    assert not Folder(tmp_path).timing.exists()


def test_without_a_variant_steps_are_timed(tmp_path: Path, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not call(monkeypatch, str(tmp_path))
    assert json.loads(Folder(tmp_path).timing.read_text()) == {"ce": 0.5}
    assert trained == []
