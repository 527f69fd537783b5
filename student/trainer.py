"""The loop: schedule → batch → hidden states → loss → backward → step."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cli_common.progress import ProgressLine
from student.assemble import Run
from student.batch import Batch, loss_counts, micro_batches
from student.checkpoint import save_checkpoint
from student.engine import gradient_norm
from student.evaluate import measure
from student.loss import DistillationLoss, distillation_loss
from student.schedule import Coefficients, distillation_at
from teacher_cache.decode import CachedRows


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step, over all processes; a line of `metrics.jsonl`.

    step counts from 1; loss as in Eq. 38; cross_entropy and kl (at T, without its square) a valid token in nats,
    frobenius a sequence; gradient_norm before clipping; tokens are the valid ones.
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


def train(run: Run, start: int) -> None:
    """Take the steps from `start` to the end; write a checkpoint now and then, and after the last."""
    settings, first = run.settings, run.processes.rank == 0
    line: AbstractContextManager[ProgressLine | None]
    line = ProgressLine("training", run.total_steps, start) if first else nullcontext()
    with line as progress:
        for step in range(start, run.total_steps):
            began = time.perf_counter()
            epoch, position = run.place(step)
            coefficients = distillation_at(settings.distillation, epoch=epoch, step_in_epoch=position, global_step=step)
            metrics = take_step(run, run.reader.read(epoch, position), coefficients, step, epoch)
            if progress is not None:
                _record(run, metrics)
                progress.update(step + 1, _words(metrics, time.perf_counter() - began))
            done, last = step + 1, step + 1 == run.total_steps
            if done % settings.training.checkpoint_every == 0 or last:
                save_checkpoint(run.engine, run.out, run.state(done), run.processes)
            if settings.evaluation.every and done % settings.evaluation.every == 0 and not last:
                measure(run, done)


def take_step(run: Run, rows: CachedRows, coefficients: Coefficients, step: int, epoch: int) -> StepMetrics:
    """One optimizer step on this process's rows of a global batch.

    Sums are divided once, by the valid positions and sequences of the whole step over all processes and
    micro-batches. DeepSpeed averages gradients over processes, which the factor `world_size` undoes; its
    division by the number of micro-batches is left off.
    """
    processes, engine = run.processes, run.engine
    hidden_stride = run.cache.manifest.hidden.stride
    counts = torch.tensor(loss_counts(rows, hidden_stride), dtype=torch.float64, device=processes.device)
    tokens, sequences = (max(count, 1.0) for count in processes.sum(counts).tolist())
    totals = torch.zeros(4, dtype=torch.float64, device=processes.device)
    norm = None
    size = run.settings.training.micro_batch_size
    for batch in micro_batches(rows, size, run.cache.layout, processes.device):
        hidden_states = engine(batch.inputs)
        loss = loss_of(run, batch, hidden_states, coefficients, tokens, sequences)
        engine.backward(loss.total * processes.world_size, scale_wrt_gas=False)
        sums = loss.sums
        totals += torch.stack([loss.total.detach(), sums.cross_entropy, sums.kl, sums.frobenius])
        if engine.is_gradient_accumulation_boundary():
            norm, learning_rate = gradient_norm(engine), engine.get_lr()[0]
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
        **vars(coefficients),
    )


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


def _record(run: Run, metrics: StepMetrics) -> None:
    run.metrics.append(vars(metrics))
    if run.engine.monitor.enabled:
        values = {name: value for name, value in vars(metrics).items() if name not in ("step", "epoch", "tokens")}
        run.engine.monitor.write_events([(f"train/{name}", value, metrics.step) for name, value in values.items()])


def _words(metrics: StepMetrics, seconds: float) -> str:
    return (
        f"loss {metrics.loss:.4f} CE {metrics.cross_entropy:.4f} KL {metrics.kl:.4f} F {metrics.frobenius:.3f} "
        f"|g| {metrics.gradient_norm:.3f} α {metrics.alpha:.3f} T {metrics.temperature:.3f} "
        f"lr {metrics.learning_rate:.2e} {metrics.tokens / seconds:,.0f} tok/s"
    )
