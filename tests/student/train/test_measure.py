"""Held-out numbers of a run: sums over parts are means over all positions, and nothing is measured twice."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from student.data.batch import Batch
from student.evaluate.calibration import bin_sums, calibration_error, equal_width_edges
from student.evaluate.positions import student_positions
from student.train import measure as measured
from student.train.assemble import Run, assemble
from student.train.processes import Processes
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import small_settings

ROWS = 7


@pytest.fixture
def run(uneven_cache: Path, alone: Processes, tmp_path: Path) -> Run:
    settings = small_settings(f"--evaluation.cache={uneven_cache}", f"--evaluation.max_rows={ROWS}")
    made = assemble(settings, open_cache(uneven_cache), tmp_path / "run", alone)
    made.out.mkdir()
    return made


def test_numbers_are_means_over_all_positions(run: Run) -> None:
    """Seven rows by twos, with unequal numbers of valid positions."""
    found = measured.evaluate(run, run.cache, ROWS)
    batch = Batch.of(run.cache.rows(range(ROWS)), run.cache, run.processes.device)
    with torch.no_grad():
        hidden_states = run.student(batch.inputs)
    every = student_positions(hidden_states, run.student.head, batch.labels, batch.loss_mask, batch.targets)
    assert every.kl is not None
    assert every.agreement is not None
    bins = bin_sums(every.confidence.numpy(), every.correct.numpy(), equal_width_edges())
    assert asdict(found) == pytest.approx(
        {
            "cross_entropy": float(every.cross_entropy.mean()),
            "perplexity": float(every.cross_entropy.mean().exp()),
            "kl": float(every.kl.mean()),
            "agreement": float(every.agreement.float().mean()),
            "accuracy": float(every.correct.float().mean()),
            "calibration_error": float(calibration_error(bins)[0]),
            "tokens": int(batch.loss_mask.sum()),
        },
        rel=1e-5,
    )
    assert run.engine.training


def test_what_is_recorded_is_not_measured_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured.measure(run, 0)
    assert measured.recorded(run, 3) == (None,)
    monkeypatch.setattr(measured, "evaluate", None)
    assert measured.measure(run, 0) == first
    (record,) = run.measurements.read()
    assert (record["step"], record["rows"], record["cache"]) == (0, ROWS, run.cache.fingerprint)


def test_a_process_without_rows_gets_one_that_counts_nothing(run: Run) -> None:
    assert measured._share(run.cache, 6, 2, ROWS).tokens.tolist() == run.cache.rows(range(6, 7)).tokens.tolist()
    idle = measured._share(run.cache, 8, 2, ROWS)
    assert len(idle.tokens) == 1
    assert not idle.loss_mask.any()


def test_without_a_held_out_cache_nothing_is_measured(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    run = assemble(small_settings(), open_cache(uneven_cache), tmp_path, alone)
    assert measured.measure(run, 0) == ()
    assert measured.recorded(run, 0) == ()
