"""The training loop, top to bottom: schedule → batch → hidden states → loss → backward → step."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.data.feed import batches_ahead
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.schedule import Coefficients, distillation_at
from student.train.assemble import Run
from student.train.checkpoint import Progress, save_checkpoint
from student.train.engine import backward, gradient_norm, withhold_update
from student.train.measure import measure
from student.train.step_log import StepMetrics, StepTime, step_log
from teacher_cache.read.decode import CachedRows

LossOf = Callable[[Run, Batch, Tensor, Coefficients, GlobalCounts], DistillationLoss]
"""(run, micro-batch, hidden states (B, T, d), coefficients, counts of the whole step) → the micro-batch's part."""

MOST_SKIPPED = 50
"""Steps without an update in a row after which training is given up: fp16 needs some to find its loss scale."""


def train(run: Run, start: Progress) -> float | None:
    """Take the steps from `start` to the end; write a checkpoint now and then, and after the last.

    Returns the share of the steps' time that this process spent waiting for data; None where no step was left.
    Raises `UserError` after `MOST_SKIPPED` steps in a row whose gradient was not finite, or if no step had another.
    """
    done = start
    with step_log(run, start) as log, step_batches(run, start.steps) as batches:
        while done.steps < run.total_steps:
            epoch, _ = run.reader.place(done.steps)
            began = time.perf_counter()
            batch = next(batches)
            waiting = time.perf_counter() - began
            metrics = take_step(run, batch, coefficients_of_next(run, done), done.steps, epoch)
            seconds = time.perf_counter() - began
            done = done.after_step(applied=metrics.applied, ends_epoch=run.reader.place(done.steps + 1)[1] == 0)
            log.add(metrics, StepTime(seconds, waiting), done)
            if log.skipped_in_a_row >= MOST_SKIPPED:
                raise UserError(_given_up(done.steps, log.skipped_in_a_row, log.last))
            measure_and_keep(run, done)
    if done.steps and not done.updates:
        raise UserError(_given_up(done.steps, done.steps, log.last))
    return log.share_waiting()


def coefficients_of_next(run: Run, done: Progress) -> Coefficients:
    """α, T and β of the next update; they follow the updates, where rows and epochs follow the steps."""
    epoch, _ = run.reader.place(done.steps)
    return distillation_at(
        run.settings.distillation, epoch=epoch, step_in_epoch=done.epoch_updates, global_step=done.updates
    )


def step_batches(run: Run, start: int) -> AbstractContextManager[Iterator[StepBatch]]:
    """The batches of the steps from `start` to the end, put together ahead."""
    size, device = run.settings.training.micro_batch_size, run.processes.device
    pinned = device.type == "cuda"

    def prepare(rows: CachedRows) -> StepBatch:
        # A thread begins on device 0, where pinning would open a context for every process of the host.
        with torch.cuda.device(device) if pinned else nullcontext():
            return StepBatch.of(rows, size, run.cache, pinned=pinned)

    return batches_ahead(run.reader, range(start, run.total_steps), prepare)


def loss_of(
    run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, counts: GlobalCounts
) -> DistillationLoss:
    """A micro-batch's part of the loss from hidden states (B, T, d)."""
    return distillation_loss(hidden_states, run.student.head, batch, coefficients, counts, frobenius=run.frobenius)


def take_step(
    run: Run, step_batch: StepBatch, coefficients: Coefficients, step: int, epoch: int, loss_of: LossOf = loss_of
) -> StepMetrics:
    """One optimizer step on this process's rows of a global batch; `step` and `epoch` count from 0.

    Sums are divided once, by the valid positions and sequences of the whole step over all processes and
    micro-batches. DeepSpeed averages gradients over processes, which the factor `world_size` undoes; its
    division by the number of micro-batches is left off.
    """
    processes, engine = run.processes, run.engine
    counts = _global_counts(run, step_batch)
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)
    norm = None
    for batch in step_batch.on(processes.device):
        hidden_states = engine(batch.inputs, batch.document_start)
        loss = loss_of(run, batch, hidden_states, coefficients, counts)
        backward(engine, loss.total * processes.world_size)
        sums = loss.sums
        totals += torch.stack([loss.total.detach(), sums.cross_entropy, sums.kl, sums.frobenius])
        if engine.is_gradient_accumulation_boundary():
            norm, learning_rate = gradient_norm(engine), engine.get_lr()[0]
            withhold_update(engine, norm)
        engine.step()
    total, cross_entropy, kl, frobenius = processes.sum(totals).tolist()
    return StepMetrics(
        step=step + 1,
        epoch=epoch,
        loss=total,
        cross_entropy=cross_entropy / counts.tokens,
        kl=kl / counts.tokens,
        frobenius=frobenius / counts.sequences,
        gradient_norm=float(engine.get_global_grad_norm() or 0.0) if norm is None else norm,
        learning_rate=learning_rate,
        tokens=int(counts.tokens),
        applied=engine.was_step_applied(),
        **vars(coefficients),
    )


def _global_counts(run: Run, step_batch: StepBatch) -> GlobalCounts:
    """Over all processes; at least 1, to divide by."""
    ours = [step_batch.tokens, step_batch.sequences]
    summed = run.processes.sum(torch.tensor(ours, dtype=torch.float64, device=run.processes.device))
    return GlobalCounts(*(max(count, 1.0) for count in summed.tolist()))


def measure_and_keep(run: Run, done: Progress) -> None:
    """Measure on held-out rows, then write a checkpoint, each when it is due.

    In this order: a run that is stopped in between takes the step again, and measures again.
    """
    settings, last = run.settings, done.steps == run.total_steps
    if settings.evaluation.every and done.steps % settings.evaluation.every == 0 and not last:
        measure(run, done.steps)
    if done.steps % settings.training.checkpoint_every == 0 or last:
        save_checkpoint(run.engine, run.out, run.state(done), run.processes)


def _given_up(step: int, skipped: int, last: StepMetrics | None) -> str:
    """What to say of steps without an update; `last` is the last of them, None if an earlier call took it."""
    terms = {} if last is None else {"cross-entropy": last.cross_entropy, "KL": last.kl, "Frobenius": last.frobenius}
    wrong = " and ".join(name for name, value in terms.items() if not math.isfinite(value))
    return (
        f"step {step}: the gradient has not been finite for {skipped} steps{wrong and ', nor has ' + wrong}; its "
        f"checkpoints are kept; {wrong and 'check the cache with `teacher-cache verify --deep`; if it is sound, '}"
        "train into another --out with a lower optimizer.learning_rate or another training.precision"
    )
