"""The training loop, top to bottom: schedule → batch → hidden states → loss → backward → step."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.data.feed import batches_ahead
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.schedule import Coefficients, distillation_at
from student.loss.transfer import transfer_sum
from student.run.checkpoints import Progress
from student.train.assemble import Run
from student.train.checkpoint import save_checkpoint
from student.train.engine import backward, gradient_norm, withhold_update
from student.train.measure import measure
from student.train.step_log import DistillationMetrics, StepMetrics, StepTime, TransferMetrics, step_log
from teacher_cache.read.decode import CachedRows

LossOf = Callable[[Run, Batch, Tensor, Coefficients, GlobalCounts], DistillationLoss]
"""(run, micro-batch, hidden states (B, T, d), coefficients, counts of the whole step) → the micro-batch's part."""

MOST_SKIPPED = 50
"""Steps without an update in a row after which training is given up: fp16 needs some to find its loss scale."""


def train(run: Run, start: Progress) -> tuple[Progress, StepTime]:
    """Take the steps from `start` to the end of the stage; write a checkpoint now and then, and after the last.

    Returns where training then stands, at the beginning of the next stage if there is one, and the time of the steps.
    Raises `UserError` after `MOST_SKIPPED` steps in a row whose gradient was not finite, or if no step had another.
    """
    done = start
    with step_log(run, start) as log, step_batches(run, start.steps) as batches:
        while done.steps < run.stage.stop:
            began = time.perf_counter()
            batch = next(batches)
            waiting = time.perf_counter() - began
            metrics = next_step(run, batch, done)
            seconds = time.perf_counter() - began
            done = done.after_step(applied=metrics.applied, ends_epoch=_stage_place(run, done.steps + 1)[1] == 0)
            log.add(metrics, StepTime(seconds, waiting), done)
            if log.skipped_in_a_row >= MOST_SKIPPED:
                raise UserError(_given_up(done.steps, log.skipped_in_a_row, log.last))
            if done.steps == run.stage.stop and not run.stage.is_last:
                _require_update(run, done, log.last)
                done = done.in_next_stage()
            measure_and_keep(run, done)
    if run.stage.is_last:
        _require_update(run, done, log.last)
    return done, log.time


def next_step(run: Run, batch: StepBatch, done: Progress) -> StepMetrics:
    """The step behind `done`, by the stage's loss."""
    epoch, _ = run.reader.place(done.steps)
    if run.stage.settings.loss == "transfer":
        return take_transfer_step(run, batch, done.steps, epoch)
    return take_step(run, batch, coefficients_of_next(run, done), done.steps, epoch)


def coefficients_of_next(run: Run, done: Progress) -> Coefficients:
    """α, T and β of the next update; they follow the stage's updates, where rows follow the steps of the run."""
    epoch, _ = _stage_place(run, done.steps)
    return distillation_at(
        run.settings.distillation, epoch=epoch, step_in_epoch=done.epoch_updates, global_step=done.updates
    )


def _stage_place(run: Run, step: int) -> tuple[int, int]:
    """(epoch, number of the step in it), both from 0, counted from the stage's beginning."""
    return run.reader.place(step - run.stage.start)


def step_batches(run: Run, start: int) -> AbstractContextManager[Iterator[StepBatch]]:
    """The batches of the steps from `start` to the end of the stage, put together ahead."""
    size, device = run.settings.training.micro_batch_size, run.processes.device
    pinned = device.type == "cuda"

    def prepare(rows: CachedRows) -> StepBatch:
        # A thread begins on device 0, where pinning would open a context for every process of the host.
        with torch.cuda.device(device) if pinned else nullcontext():
            return StepBatch.of(rows, size, run.cache, pinned=pinned)

    return batches_ahead(run.reader, range(start, run.stage.stop), prepare)


def loss_of(
    run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, counts: GlobalCounts
) -> DistillationLoss:
    """A micro-batch's part of the loss from hidden states (B, T, d)."""
    return distillation_loss(hidden_states, run.student.head, batch, coefficients, counts, frobenius=run.frobenius)


def take_step(
    run: Run, step_batch: StepBatch, coefficients: Coefficients, step: int, epoch: int, loss_of: LossOf = loss_of
) -> DistillationMetrics:
    """One optimizer step by distillation on this process's rows of a global batch; `step` and `epoch` count from 0."""

    def part(batch: Batch, counts: GlobalCounts) -> tuple[Tensor, list[Tensor]]:
        hidden_states = run.engine(batch.inputs, batch.document_start)
        loss = loss_of(run, batch, hidden_states, coefficients, counts)
        return loss.total, [loss.sums.cross_entropy, loss.sums.kl, loss.sums.frobenius]

    found = _accumulate(run, step_batch, part)
    total, cross_entropy, kl, frobenius = found.totals
    return DistillationMetrics(
        **vars(_common(run, found, step, epoch)),
        loss=total,
        cross_entropy=cross_entropy / found.counts.tokens,
        kl=kl / found.counts.tokens,
        frobenius=frobenius / found.counts.sequences,
        **vars(coefficients),
    )


def take_transfer_step(run: Run, step_batch: StepBatch, step: int, epoch: int) -> TransferMetrics:
    """One optimizer step by attention transfer, otherwise as `take_step`."""

    def part(batch: Batch, counts: GlobalCounts) -> tuple[Tensor, list[Tensor]]:
        errors = run.engine(batch.inputs, batch.document_start, transfer=True)
        return transfer_sum(errors, batch.loss_mask) / counts.tokens, []

    found = _accumulate(run, step_batch, part)
    return TransferMetrics(**vars(_common(run, found, step, epoch)), transfer=found.totals[0])


@dataclass(frozen=True)
class _Accumulated:
    """What the micro-batches of a step came to, over all processes."""

    counts: GlobalCounts
    totals: list[float]
    """The loss, and the sums that came with it."""
    norm: float | None
    learning_rate: float


def _accumulate(
    run: Run, step_batch: StepBatch, part: Callable[[Batch, GlobalCounts], tuple[Tensor, list[Tensor]]]
) -> _Accumulated:
    """Add up gradients over the micro-batches and step the optimizer; `part` gives a micro-batch's loss and sums.

    Sums are divided once, by the valid positions and sequences of the whole step over all processes and
    micro-batches. DeepSpeed averages gradients over processes, which the factor `world_size` undoes; its
    division by the number of micro-batches is left off.
    """
    processes, engine = run.processes, run.engine
    counts = _global_counts(run, step_batch)
    totals: Tensor | float = 0.0
    norm = None
    for batch in step_batch.on(processes.device):
        loss, sums = part(batch, counts)
        backward(engine, loss * processes.world_size)
        totals = totals + torch.stack([loss.detach(), *sums]).to(torch.float64)
        if engine.is_gradient_accumulation_boundary():
            norm, learning_rate = gradient_norm(engine), engine.get_lr()[0]
            withhold_update(engine, norm)
        engine.step()
    assert isinstance(totals, Tensor)
    return _Accumulated(counts, processes.sum(totals).tolist(), norm, learning_rate)


def _common(run: Run, found: _Accumulated, step: int, epoch: int) -> StepMetrics:
    """What is recorded of a step by any loss."""
    engine = run.engine
    return StepMetrics(
        step=step + 1,
        epoch=epoch,
        stage=run.stage.number,
        gradient_norm=float(engine.get_global_grad_norm() or 0.0) if found.norm is None else found.norm,
        learning_rate=found.learning_rate,
        tokens=int(found.counts.tokens),
        applied=engine.was_step_applied(),
    )


def _global_counts(run: Run, step_batch: StepBatch) -> GlobalCounts:
    """Over all processes; at least 1, to divide by."""
    ours = [step_batch.tokens, step_batch.sequences]
    summed = run.processes.sum(torch.tensor(ours, dtype=torch.float64, device=run.processes.device))
    return GlobalCounts(*(max(count, 1.0) for count in summed.tolist()))


def measure_and_keep(run: Run, done: Progress) -> None:
    """Measure on held-out rows, then write a checkpoint, each when it is due and at the end of a stage.

    In this order: a run that is stopped in between takes the step again, and measures again. The numbers after the
    last step are measured by the job.
    """
    settings, ends_stage = run.settings, done.steps == run.stage.stop
    due = settings.evaluation.every and done.steps % settings.evaluation.every == 0
    if (due or ends_stage) and done.steps < run.total_steps:
        measure(run, done.steps)
    if done.steps % settings.training.checkpoint_every == 0 or ends_stage:
        save_checkpoint(run.engine, run.out, run.state(done), run.processes, run.untrained)


def _require_update(run: Run, done: Progress, last: StepMetrics | None) -> None:
    """Raise `UserError` at the end of a stage none of whose steps was an update."""
    if done.steps > run.stage.start and not done.updates:
        raise UserError(_given_up(done.steps, done.steps - run.stage.start, last))


def _given_up(step: int, skipped: int, last: StepMetrics | None) -> str:
    """What to say of steps without an update; `last` is the last of them, None if an earlier call took it."""
    names = {"cross_entropy": "cross-entropy", "kl": "KL", "frobenius": "Frobenius", "transfer": "transfer"}
    terms = {} if last is None else {words: getattr(last, name, 0.0) for name, words in names.items()}
    wrong = " and ".join(words for words, value in terms.items() if not math.isfinite(value))
    return (
        f"step {step}: the gradient has not been finite for {skipped} steps{wrong and ', nor has ' + wrong}; its "
        f"checkpoints are kept; {wrong and 'check the cache with `teacher-cache verify --deep`; if it is sound, '}"
        "train into another --out with a lower optimizer.learning_rate or another training.precision"
    )
