"""The loop: schedule → batch → hidden states → loss → backward → step."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_common.errors import UserError
from delta_common.progress import ProgressLine
from student.data.batch import Batch, StepBatch
from student.data.feed import batches_ahead
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.schedule import Coefficients, distillation_at
from student.run.records import StepCost
from student.train.assemble import Run
from student.train.checkpoint import Progress, save_checkpoint
from student.train.engine import backward, gradient_norm, withhold_update
from student.train.measure import measure
from student.train.processes import Processes
from teacher_cache.read.decode import CachedRows

LossOf = Callable[[Run, Batch, Tensor, Coefficients, float, float], DistillationLoss]
"""(run, micro-batch, hidden states, coefficients, the step's tokens, its sequences) → the micro-batch's part."""

NO_CURVES = {"step", "epoch", "tokens", "applied"}

MOST_SKIPPED = 50
"""Steps without an update in a row after which training is given up: fp16 needs some to find its loss scale."""


@dataclass(frozen=True)
class StepMetrics:
    """One step, over all processes; a line of `metrics.jsonl`.

    step counts from 1; loss as in Eq. 38; cross_entropy and kl (at T, without its square) a valid token in nats,
    frobenius a sequence; gradient_norm before clipping; tokens are the valid ones; applied is false where the update
    was skipped because the gradient was not finite.
    """

    step: int
    epoch: int
    loss: float
    cross_entropy: float
    kl: float
    frobenius: float
    gradient_norm: float
    alpha: float
    temperature: float
    beta: float
    learning_rate: float
    tokens: int
    applied: bool


def train(run: Run, start: Progress) -> float | None:
    """Take the steps from `start` to the end; write a checkpoint now and then, and after the last.

    Returns the share of the steps' time that this process spent waiting for data; None where no step was left.
    """
    done, waited, taken, skipped = start, 0.0, 0.0, 0
    with _progress_line(run, start) as line, step_batches(run, start.steps) as batches:
        while done.steps < run.total_steps:
            began = time.perf_counter()
            batch = next(batches)
            wait = time.perf_counter() - began
            metrics = take_step(run, batch, _coefficients(run, done), done.steps, run.reader.place(done.steps)[0])
            seconds = time.perf_counter() - began
            waited, taken = waited + wait, taken + seconds
            done = done.after_step(applied=metrics.applied, ends_epoch=run.reader.place(done.steps + 1)[1] == 0)
            if line is not None:
                _record(run, metrics)
                run.costs.append(vars(step_cost(metrics.step, metrics.tokens, seconds, wait, run.processes)))
                line.update(done.steps, _words(metrics, seconds, wait, done))
            skipped = 0 if metrics.applied else skipped + 1
            _require_updates(skipped, done.steps)
            _measure_and_keep(run, done)
    return waited / taken if taken else None


def _require_updates(skipped: int, step: int) -> None:
    if skipped >= MOST_SKIPPED:
        raise UserError(
            f"step {step}: the gradient has not been finite for {skipped} steps; its checkpoints are kept; "
            "train into another --out with a lower optimizer.learning_rate or another training.precision"
        )


def _progress_line(run: Run, start: Progress) -> AbstractContextManager[ProgressLine | None]:
    first = run.processes.rank == 0
    return ProgressLine("training", run.total_steps, start.steps) if first else nullcontext()


def step_batches(run: Run, start: int) -> AbstractContextManager[Iterator[StepBatch]]:
    """The batches of the steps from `start` to the end, put together ahead."""
    size, device = run.settings.training.micro_batch_size, run.processes.device
    pinned = device.type == "cuda"

    def prepare(rows: CachedRows) -> StepBatch:
        # A thread begins on device 0, where pinning would open a context for every process of the host.
        with torch.cuda.device(device) if pinned else nullcontext():
            return StepBatch.of(rows, size, run.cache, pinned=pinned)

    return batches_ahead(run.reader, range(start, run.total_steps), prepare)


def _coefficients(run: Run, done: Progress) -> Coefficients:
    epoch, _ = run.reader.place(done.steps)
    return distillation_at(
        run.settings.distillation, epoch=epoch, step_in_epoch=done.epoch_updates, global_step=done.updates
    )


def _measure_and_keep(run: Run, done: Progress) -> None:
    """In this order: a run that is stopped in between takes the step again, and measures again."""
    settings, last = run.settings, done.steps == run.total_steps
    if settings.evaluation.every and done.steps % settings.evaluation.every == 0 and not last:
        measure(run, done.steps)
    if done.steps % settings.training.checkpoint_every == 0 or last:
        save_checkpoint(run.engine, run.out, run.state(done), run.processes)


def loss_of(
    run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, tokens: float, sequences: float
) -> DistillationLoss:
    """A micro-batch's part of the loss; hidden_states (B, T, d), counts of the whole step."""
    return distillation_loss(
        hidden_states,
        run.student.head,
        batch.labels,
        batch.loss_mask,
        batch.targets,
        coefficients,
        tokens=tokens,
        sequences=sequences,
        hidden_mean=None if run.frobenius is None else batch.hidden_mean,
        frobenius=run.frobenius,
    )


def take_step(
    run: Run, step_batch: StepBatch, coefficients: Coefficients, step: int, epoch: int, loss_of: LossOf = loss_of
) -> StepMetrics:
    """One optimizer step on this process's rows of a global batch.

    Sums are divided once, by the valid positions and sequences of the whole step over all processes and
    micro-batches. DeepSpeed averages gradients over processes, which the factor `world_size` undoes; its
    division by the number of micro-batches is left off.
    """
    processes, engine = run.processes, run.engine
    counts = torch.tensor([step_batch.tokens, step_batch.sequences], dtype=torch.float64, device=processes.device)
    tokens, sequences = (max(count, 1.0) for count in processes.sum(counts).tolist())
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)
    norm = None
    for batch in step_batch.on(processes.device):
        hidden_states = engine(batch.inputs, batch.document_start)
        loss = loss_of(run, batch, hidden_states, coefficients, tokens, sequences)
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
        cross_entropy=cross_entropy / tokens,
        kl=kl / tokens,
        frobenius=frobenius / sequences,
        gradient_norm=float(engine.get_global_grad_norm() or 0.0) if norm is None else norm,
        learning_rate=learning_rate,
        tokens=int(tokens),
        applied=engine.was_step_applied(),
        **vars(coefficients),
    )


def _record(run: Run, metrics: StepMetrics) -> None:
    run.metrics.append(vars(metrics))
    if run.engine.monitor.enabled:
        values = {name: value for name, value in vars(metrics).items() if name not in NO_CURVES}
        run.engine.monitor.write_events([(f"train/{name}", value, metrics.step) for name, value in values.items()])


def _words(metrics: StepMetrics, seconds: float, wait: float, done: Progress) -> str:
    skipped = done.steps - done.updates
    return (
        f"loss {metrics.loss:.4f} CE {metrics.cross_entropy:.4f} KL {metrics.kl:.4f} F {metrics.frobenius:.3f} "
        f"|g| {metrics.gradient_norm:.3f} α {metrics.alpha:.3f} T {metrics.temperature:.3f} "
        f"lr {metrics.learning_rate:.2e} {metrics.tokens / seconds:,.0f} tok/s wait {wait / seconds:.1%}"
        + (f" skipped {skipped:,}" if skipped else "")
    )


def step_cost(step: int, tokens: int, seconds: float, waiting: float, processes: Processes) -> StepCost:
    """The cost of a step that has just been taken."""
    device = processes.device
    if device.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"CPU with {torch.get_num_threads()} threads"
    machine = f"{processes.world_size} × {name}, torch {torch.__version__}"
    return StepCost(step, tokens, seconds, waiting, peak, machine)
