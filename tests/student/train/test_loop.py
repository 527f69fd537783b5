"""A step of the loop against the plain loss over all its rows at once, and when the loop gives up."""

from pathlib import Path
from typing import Any

import pytest
import torch

from delta_common.errors import UserError
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.loss.naive import distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.run.checkpoints import Progress
from student.train import loop
from student.train.assemble import Run, assemble
from student.train.processes import Processes
from student.train.step_log import StepTime
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import small_settings

COEFFICIENTS = Coefficients(alpha=0.5, temperature=1.5, beta=0.2)


@pytest.fixture
def run(uneven_cache: Path, alone: Processes, tmp_path: Path) -> Run:
    return assemble(small_settings(), open_cache(uneven_cache), tmp_path / "run", alone)


def test_a_step_is_the_loss_over_all_its_rows_divided_once(run: Run) -> None:
    """Rows have unequal numbers of valid positions, so a mean over micro-batches would be another number."""
    rows = run.reader.read(0)
    batch, step_batch = Batch.of(rows, run.cache, run.processes.device), StepBatch.of([rows], 2, [run.cache])
    counts = GlobalCounts(int(rows.loss_mask.sum()), len(rows.tokens))
    before = [parameter.detach().clone() for parameter in run.student.parameters()]
    head = run.student.head
    sums = distillation_loss_sums(
        run.student(batch.inputs), head, batch, temperature=COEFFICIENTS.temperature, frobenius=run.frobenius[0]
    )
    expected = total_loss(sums, COEFFICIENTS, counts)
    gradients = torch.autograd.grad(expected, list(run.student.parameters()))
    metrics = loop.take_step(run, step_batch, [COEFFICIENTS], step=4, epoch=1)
    assert (metrics.step, metrics.epoch, metrics.tokens, metrics.applied) == (5, 1, counts.tokens, True)
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-5)
    assert metrics.cross_entropy == pytest.approx(sums.cross_entropy.item() / counts.tokens, rel=1e-5)
    assert metrics.kl == pytest.approx(sums.kl.item() / counts.tokens, rel=1e-5)
    assert metrics.frobenius == pytest.approx(sums.frobenius.item() / counts.sequences, rel=1e-5)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    assert metrics.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True))


def test_coefficients_follow_the_updates_and_not_the_steps(run: Run) -> None:
    skipped = loop.coefficients_of_next(run, Progress(steps=5, updates=2, epoch_updates=2))
    assert skipped == loop.coefficients_of_next(run, Progress(steps=2, updates=2, epoch_updates=2))
    assert skipped[0].alpha > loop.coefficients_of_next(run, Progress(steps=5, updates=5, epoch_updates=5))[0].alpha
    (later,) = loop.coefficients_of_next(run, Progress(steps=run.reader.batches_per_epoch))
    assert later.temperature == pytest.approx(1.95)


def test_batches_are_those_the_reader_gives_from_a_step_on(run: Run) -> None:
    with loop.step_batches(run, 4) as batches:
        found = list(batches)
    assert len(found) == run.total_steps - 4
    first = run.reader.read(4)
    inputs = torch.cat([part.inputs for part in found[0].on(torch.device("cpu"))])
    assert torch.equal(inputs, torch.from_numpy(first.tokens[:, :-1].astype("int64")))


@pytest.fixture
def without_update(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run none of whose gradients is finite."""
    take_step = loop.take_step

    def infinite(*arguments: Any) -> Any:
        def loss_of(*given: Any) -> Any:
            given[2].register_hook(lambda gradient: gradient * torch.inf)
            return loop.loss_of(*given)

        return take_step(*arguments, loss_of)

    run.out.mkdir()
    monkeypatch.setattr(loop, "take_step", infinite)
    return run


def test_too_many_steps_without_an_update_end_training(without_update: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    with pytest.raises(UserError, match=r"step 3: .* for 3 steps; its checkpoints"):
        loop.train(without_update, Progress())
    assert [record["applied"] for record in without_update.metrics.read()] == [False] * 3


def test_a_training_without_any_update_is_no_success(without_update: Run) -> None:
    with pytest.raises(UserError, match="step 6: the gradient has not been finite for 6 steps"):
        loop.train(without_update, Progress())


def test_nothing_left_to_do_takes_no_step(run: Run) -> None:
    done = Progress(steps=run.total_steps, updates=1)
    assert loop.train(run, done) == (done, StepTime(0.0, 0.0))
    assert run.metrics.read() == []
