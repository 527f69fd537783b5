"""The training loop, top to bottom: schedule → batch → hidden states → loss → backward → step."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data.batch import Batch, GlobalCounts, MicroBatch, StepBatch
from student.data.begun import BegunBatches
from student.data.feed import Parts, batches_ahead
from student.loss.distillation import DistillationLoss, distillation_loss
from student.loss.frobenius import zero_through_map
from student.loss.schedule import Coefficients, distillation_at
from student.loss.transfer import transfer_sum
from student.model.student import asked_at_head
from student.run.checkpoints import Progress
from student.train.assemble import Run
from student.train.checkpoint import save_checkpoint
from student.train.engine import announce_norm, backward, gradient_norm
from student.train.measure import measure
from student.train.step_log import CacheMetrics, DistillationMetrics, StepMetrics, StepTime, TransferMetrics, step_log

LossOf = Callable[[Run, Batch, Tensor, Coefficients, GlobalCounts], DistillationLoss]
"""(run, batch, hidden states (B, T, d), coefficients, counts of the whole step) → the batch's part of the loss.

The batch is of one cache: a micro-batch, or what a cache has in it.
"""

MOST_SKIPPED = 50
"""Steps without an update in a row after which training is given up: fp16 needs some to find its loss scale."""


def train(run: Run, start: Progress) -> tuple[Progress, StepTime]:
    """Take the steps from `start` to the end of the stage; write a checkpoint now and then, and after the last.

    Returns where training then stands, at the beginning of the next stage if there is one, and the time of the steps.
    Raises `UserError` after `MOST_SKIPPED` steps in a row whose gradient was not finite, or if no step had another.
    """
    done = start
    with step_log(run, start) as log, step_batches(run, start.steps) as made:
        batches = BegunBatches(made, run.processes.device)
        while done.steps < run.stage.stop:
            began, waited = time.perf_counter(), batches.waited
            metrics = next_step(run, next(batches), done)
            seconds, waiting = time.perf_counter() - began, batches.waited - waited
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


def coefficients_of_next(run: Run, done: Progress) -> tuple[Coefficients, ...]:
    """α, T and β of the next update by cache; they follow the stage's updates, where rows follow the run's steps."""
    epoch, _ = _stage_place(run, done.steps)
    return tuple(
        distillation_at(wanted, epoch=epoch, step_in_epoch=done.epoch_updates, global_step=done.updates)
        for wanted in run.distillations
    )


def _stage_place(run: Run, step: int) -> tuple[int, int]:
    """(epoch, number of the step in it), both from 0, counted from the stage's beginning."""
    return run.reader.place(step - run.stage.start)


def step_batches(run: Run, start: int) -> AbstractContextManager[Iterator[StepBatch]]:
    """The batches of the steps from `start` to the end of the stage, put together ahead."""
    size, device = run.settings.training.micro_batch_size, run.processes.device
    pinned = device.type == "cuda"

    def prepare(parts: Parts) -> StepBatch:
        # A thread begins on device 0, where pinning would open a context for every process of the host.
        with torch.cuda.device(device) if pinned else nullcontext():
            return StepBatch.of(parts, size, run.caches, pinned=pinned)

    return batches_ahead(run.readers, range(start, run.stage.stop), prepare)


def loss_of(
    run: Run, batch: Batch, hidden_states: Tensor, coefficients: Coefficients, counts: GlobalCounts
) -> DistillationLoss:
    """A batch's part of the loss from hidden states (B, T, d)."""
    head, term = run.student.head, run.frobenius[batch.cache]
    return distillation_loss(
        hidden_states, head, batch, coefficients, counts, frobenius=term, teacher_head=run.teacher_head
    )


def take_step(
    run: Run,
    step_batch: StepBatch,
    coefficients: Sequence[Coefficients],
    step: int,
    epoch: int,
    loss_of: LossOf = loss_of,
) -> DistillationMetrics:
    """One optimizer step by distillation on this process's rows of a global batch; `step` and `epoch` count from 0.

    `coefficients` are by cache; those of the first stand in the metrics of the whole step.
    """

    def part(micro_batch: MicroBatch, counts: GlobalCounts) -> Tensor:
        ask = partial(_loss_and_sums, run, micro_batch, coefficients, counts, loss_of)
        return asked_at_head(run.engine, run.student, micro_batch.inputs, micro_batch.document_start, ask)

    found = _accumulate(run, step_batch, part)
    cross_entropy, kl, frobenius = found.sums.sum(0).tolist()
    return DistillationMetrics(
        **vars(_common(run, found, step, epoch)),
        loss=found.loss,
        cross_entropy=cross_entropy / found.counts.tokens,
        kl=kl / found.counts.tokens,
        frobenius=frobenius / found.counts.sequences,
        **vars(coefficients[0]),
        by_cache=_by_cache(run, found, coefficients, step) if len(run.caches) > 1 else (),
    )


def _loss_and_sums(
    run: Run,
    micro_batch: MicroBatch,
    coefficients: Sequence[Coefficients],
    counts: GlobalCounts,
    loss_of: LossOf,
    hidden_states: Tensor,
) -> Tensor:
    """A micro-batch's loss, then for each cache its sums of cross-entropy, KL and F; (1 + 3 caches,) float64."""
    total = _through_maps(run, micro_batch, hidden_states)
    sums = torch.zeros(len(run.caches), 3, dtype=torch.float64, device=hidden_states.device)
    for batch, states in micro_batch.with_states(hidden_states):
        loss = loss_of(run, batch, states, coefficients[batch.cache], counts)
        total = loss.total if total is None else total + loss.total
        sums[batch.cache] = torch.stack([loss.sums.cross_entropy, loss.sums.kl, loss.sums.frobenius])
    assert total is not None
    return torch.cat([total.to(torch.float64)[None], sums.flatten()])


def _through_maps(run: Run, micro_batch: MicroBatch, hidden_states: Tensor) -> Tensor | None:
    """A 0 through the map of the states for each cache with a Frobenius term but no rows here; None without such.

    Every process must use the map as often as the others do: under ZeRO 3 each time gathers it from all of them.
    """
    here = {batch.cache for batch in micro_batch.parts}
    terms = (term for number, term in enumerate(run.frobenius) if number not in here and term is not None)
    zeros = [zero_through_map(hidden_states, term.state_map) for term in terms if term.state_map is not None]
    return torch.stack(zeros).sum() if zeros else None


def _by_cache(
    run: Run, found: "_Accumulated", coefficients: Sequence[Coefficients], step: int
) -> tuple[CacheMetrics, ...]:
    metrics = []
    for number, reader in enumerate(run.readers):
        (tokens, sequences), sums = found.counted[number].tolist(), found.sums[number].tolist()
        metrics.append(
            CacheMetrics(
                rows=reader.count(step),
                tokens=int(tokens),
                cross_entropy=sums[0] / tokens if tokens else None,
                kl=sums[1] / tokens if tokens else None,
                frobenius=sums[2] / sequences if sequences and run.frobenius[number] else None,
                **vars(coefficients[number]),
            )
        )
    return tuple(metrics)


def take_transfer_step(run: Run, step_batch: StepBatch, step: int, epoch: int) -> TransferMetrics:
    """One optimizer step by attention transfer, otherwise as `take_step`."""

    def part(micro_batch: MicroBatch, counts: GlobalCounts) -> Tensor:
        errors = run.engine(micro_batch.inputs, micro_batch.document_start, transfer=True)
        return (transfer_sum(errors, micro_batch.loss_mask) / counts.tokens)[None]

    found = _accumulate(run, step_batch, part)
    return TransferMetrics(**vars(_common(run, found, step, epoch)), transfer=found.loss)


@dataclass(frozen=True)
class _Accumulated:
    """What the micro-batches of a step came to, over all processes."""

    counted: Tensor
    """(caches, 2) float64: valid positions, and rows that count for the Frobenius term."""
    loss: float
    sums: Tensor
    """(caches, 3) float64 as they came with the loss: of cross-entropy, KL and the Frobenius term; else empty."""
    norm: float | None
    learning_rate: float

    @property
    def counts(self) -> GlobalCounts:
        """Over all caches."""
        return _counts(self.counted)


def _accumulate(run: Run, step_batch: StepBatch, part: Callable[[MicroBatch, GlobalCounts], Tensor]) -> _Accumulated:
    """Add up gradients over the micro-batches and step the optimizer; `part` gives a micro-batch's loss, then its sums.

    Sums are divided once, by the valid positions and sequences of the whole step over all processes and
    micro-batches. DeepSpeed averages gradients over processes, which the factor `world_size` undoes; its
    division by the number of micro-batches is left off.
    """
    processes, engine = run.processes, run.engine
    counted = _counted(run, step_batch)
    counts = _counts(counted)
    totals = torch.zeros((), dtype=torch.float64, device=processes.device)
    norm: float | None = None
    learning_rate, found = 0.0, totals
    for batch in step_batch.on(processes.device):
        terms = part(batch, counts)
        backward(engine, terms[0] * processes.world_size)
        totals = totals + terms.detach().to(torch.float64)
        if engine.is_gradient_accumulation_boundary():
            step_batch.begin_next()
            norm, learning_rate = gradient_norm(engine), engine.get_lr()[0]
            announce_norm(engine, norm)
            # Read before the update, which a GPU works on while the host goes on to the next step.
            found = processes.sum(totals).cpu()
        engine.step()
    kinds = (len(found) - 1) // len(run.caches)
    return _Accumulated(counted, float(found[0]), found[1:].view(len(run.caches), kinds), norm, learning_rate)


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


def _counted(run: Run, step_batch: StepBatch) -> Tensor:
    """(caches, 2) float64 in host memory: valid positions and sequences of the step by cache, over all processes."""
    ours = [[counted.tokens, counted.sequences] for counted in step_batch.counted]
    if run.processes.world_size == 1:  # alone, the host need not wait for its device
        return torch.tensor(ours, dtype=torch.float64)
    return run.processes.sum(torch.tensor(ours, dtype=torch.float64, device=run.processes.device)).cpu()


def _counts(counted: Tensor) -> GlobalCounts:
    """Over all caches; at least 1, to divide by."""
    return GlobalCounts(*(max(count, 1.0) for count in counted.sum(0).tolist()))


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
