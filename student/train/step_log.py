"""What a step leaves behind: a line in `metrics.jsonl` and in `costs.jsonl`, and what is shown while it trains."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from delta_common.machine.matrix_work import MatrixWork
from delta_common.progress import ProgressLine
from student.model.operations import training_operations
from student.run.checkpoints import Progress
from student.run.records import StepCost
from student.train.assemble import Run
from student.train.processes import Processes

COMPILING = "compiling kernels: up to a minute, a few seconds where they were compiled before"
"""What is said while a student that runs compiled takes its first step."""
NO_CURVES = {"step", "epoch", "stage", "tokens", "applied", "by_cache"}
"""Metrics that monitors are not sent; those by cache they are sent one by one."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step, over all processes; a line of `metrics.jsonl`, with the terms of its loss."""

    step: int
    """From 1."""
    epoch: int
    """From 0."""
    stage: int = 1
    """From 1."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """Of the new parameters; of the teacher's own where these alone are trained."""
    tokens: int
    """Valid positions."""
    applied: bool
    """False where the update was skipped because the gradient was not finite."""

    @property
    def line(self) -> dict[str, object]:
        """As it stands in `metrics.jsonl`, where a run on a single cache has nothing by cache."""
        return {name: value for name, value in asdict(self).items() if name != "by_cache" or value}


@dataclass(frozen=True, kw_only=True)
class CacheMetrics:
    """What a step came to on the rows of one of several caches; None where it had none that count."""

    rows: int
    tokens: int
    """Valid positions."""
    cross_entropy: float | None
    kl: float | None
    frobenius: float | None
    alpha: float
    temperature: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class DistillationMetrics(StepMetrics):
    """A step by distillation.

    loss is Eq. 38. cross_entropy and kl are in nats per valid token, kl at T and without the factor T²; frobenius is
    per sequence.
    """

    loss: float
    cross_entropy: float
    kl: float
    frobenius: float
    alpha: float
    temperature: float
    beta: float
    by_cache: tuple[CacheMetrics, ...] = ()
    """Of several caches all of them."""


@dataclass(frozen=True, kw_only=True)
class TransferMetrics(StepMetrics):
    """A step by attention transfer."""

    transfer: float
    """Relative squared error of the mixers' outputs, mean over layers and valid positions."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step in this process, without evaluations and checkpoints."""

    seconds: float
    waiting: float
    """Of these, spent waiting for data."""

    @property
    def share_waiting(self) -> float | None:
        """The share spent waiting for data; None where no step was taken."""
        return self.waiting / self.seconds if self.seconds else None

    def __add__(self, other: "StepTime") -> "StepTime":
        return StepTime(self.seconds + other.seconds, self.waiting + other.waiting)


@dataclass
class StepLog:
    """Writes every step down in the first process; in all of them, adds up time and counts skipped updates."""

    run: Run
    line: ProgressLine
    work: MatrixWork | None = None
    """Of a step; None where it is not known."""
    time: StepTime = StepTime(0.0, 0.0)
    """Of all steps."""
    skipped_in_a_row: int = 0
    """Steps without an update since the last one that had one."""
    last: StepMetrics | None = None
    """The last step that was added."""

    def add(self, metrics: StepMetrics, time: StepTime, done: Progress) -> None:
        """Write down a step; `done` counts it."""
        self.time += time
        self.last = metrics
        self.skipped_in_a_row = 0 if metrics.applied else self.skipped_in_a_row + 1
        if self.run.processes.rank == 0:
            record(self.run, metrics)
            mfu = None if self.work is None else self.work.mfu(_positions(self.run), metrics.tokens, time.seconds)
            self.run.costs.append(vars(step_cost(metrics, time, self.run.processes, mfu)))
            self.line.update(done.steps, progress_words(metrics, time, done, mfu))


@contextmanager
def step_log(run: Run, start: Progress) -> Iterator[StepLog]:
    """A log of the steps from `start` on, with a progress line while it is open."""
    with ProgressLine(run.stage.words, run.total_steps, start.steps, shown=run.processes.rank == 0) as line:
        if run.student.can_compile:
            line.update(start.steps, COMPILING)
        yield StepLog(run, line, _matrix_work(run))


def _matrix_work(run: Run) -> MatrixWork | None:
    """Of distillation alone: attention transfer runs each layer twice, and of some of it takes no gradient."""
    if run.stage.settings.loss == "transfer":
        return None
    processes = run.processes
    operations = training_operations(run.student)
    return MatrixWork.of(operations, processes.device, run.student.embedding.dtype, processes.world_size)


def _positions(run: Run) -> int:
    """Of a step, over all processes; the student runs over those too that do not count."""
    return run.settings.training.global_batch(run.processes.world_size) * run.cache.manifest.seq_len


def record(run: Run, metrics: StepMetrics) -> None:
    """Add a step to `metrics.jsonl`, and to the monitors of the DeepSpeed JSON."""
    line = metrics.line
    run.metrics.append(line)
    if run.engine.monitor.enabled:
        values = {name: value for name, value in line.items() if name not in NO_CURVES}
        by_cache = metrics.by_cache if isinstance(metrics, DistillationMetrics) else ()
        for number, found in enumerate(by_cache, start=1):
            values |= {f"cache {number}/{name}": value for name, value in vars(found).items() if value is not None}
        run.engine.monitor.write_events([(f"train/{name}", value, metrics.step) for name, value in values.items()])


def step_cost(metrics: StepMetrics, time: StepTime, processes: Processes, mfu: float | None = None) -> StepCost:
    """The cost of a step that has just been taken."""
    device = processes.device
    if device.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"CPU with {torch.get_num_threads()} threads"
    machine = f"{processes.world_size} × {name}, torch {torch.__version__}"
    return StepCost(metrics.step, metrics.tokens, time.seconds, time.waiting, peak, machine, mfu)


def progress_words(metrics: StepMetrics, time: StepTime, done: Progress, mfu: float | None = None) -> str:
    """What the progress line says of a step."""
    share = "" if mfu is None else f"MFU {mfu:.1%} "
    skipped = f" skipped {done.skipped:,}" if done.skipped else ""
    return (
        f"{_terms(metrics)} lr {metrics.learning_rate:.2e} {metrics.tokens / time.seconds:,.0f} tok/s "
        f"{share}wait {time.waiting / time.seconds:.1%}{skipped}"
    )


def _terms(metrics: StepMetrics) -> str:
    norm = f"|g| {metrics.gradient_norm:.3f}"
    match metrics:
        case TransferMetrics():
            return f"transfer {metrics.transfer:.4f} {norm}"
        case DistillationMetrics():
            return (
                f"loss {metrics.loss:.4f} CE {metrics.cross_entropy:.4f} KL {metrics.kl:.4f} "
                f"F {metrics.frobenius:.3f} {norm} α {metrics.alpha:.3f} T {metrics.temperature:.3f}"
            )
    return norm
