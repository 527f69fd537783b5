"""The end of a training job: write its summary and report, print held-out numbers and a sample of text."""

import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from delta_common.files import write_atomically
from student.evaluate.held_out import rows_in_order, teacher_scores
from student.model.student import is_beside
from student.model.xlstm import ParameterCounts
from student.report.page import REPORT_FILE, write_report
from student.run.by_cache import LAST_STEPS, TRAINED_CACHE_WORDS, cells_by_cache, means_by_cache
from student.run.files import SUMMARY_FILE, TRAINED_FILE, RunSummary, Sample, read_provenance, read_run
from student.run.measure_words import MEASURE_WORDS
from student.run.records import METRICS_FILE
from student.run.stages import planned
from student.run.student_words import cache_names
from student.train.assemble import Run
from student.train.job import Outcome, provenance
from student.train.master_states import parameter_shapes
from student.train.measure import recorded
from student.train.samples import write_samples


def finish(outcome: Outcome) -> None:
    """Write `summary.json` and `report.html`; print the summary to standard output."""
    run = outcome.run
    samples = write_samples(run)
    write_atomically(run.out / SUMMARY_FILE, _summary(outcome, samples).model_dump_json(indent=1).encode() + b"\n")
    write_report([read_run(run.out)], run.out / REPORT_FILE)
    _print(outcome, samples)


def _print(outcome: Outcome, samples: list[Sample]) -> None:
    run, console = outcome.run, Console()
    console.print(*_held_out(run), *_by_cache(run), sep="\n", end="")
    if samples:
        console.print("student's text after a held-out beginning:", style="bold")
        console.print(f"{samples[0].prompt} │ {samples[0].likeliest}", markup=False, highlight=False)
    counts = _counts(run)
    console.print(f"trained {counts.trainable:,} of {counts.total:,} parameters", highlight=False)
    if outcome.waiting is not None:
        console.print(f"waiting for data: {outcome.waiting:.1%} of the steps' time", highlight=False)
    for name in (TRAINED_FILE, METRICS_FILE, "checkpoints", REPORT_FILE):
        console.print(str(run.out / name), highlight=False, soft_wrap=True)


def _held_out(run: Run) -> Iterator[Table]:
    """The numbers on each held-out cache, at the beginning and at the end of each stage."""
    measured = {step: recorded(run, step) for step in (0, *(stage.stop for stage in run.stages))}
    for number, path in enumerate(run.settings.evaluation.paths):
        table = Table(title=f"held out: {path}", title_justify="left")
        table.add_column("")
        for step in measured:
            table.add_column(f"after {step:,} steps", justify="right")
        numbers = [{} if found[number] is None else vars(found[number]) for found in measured.values()]
        for name, (words, form) in MEASURE_WORDS.items():
            table.add_row(words, *(form.format(m[name]) if m else "–" for m in numbers))
        yield table


def _by_cache(run: Run) -> Iterator[Table]:
    """Of several caches what was read of each, and the loss on its rows over the last steps."""
    caches = provenance(run).caches
    if not caches:
        return
    means = means_by_cache(run.metrics.read())
    table = Table(title=f"trained on, means over up to {LAST_STEPS} last steps", title_justify="left")
    table.add_column("")
    for words in TRAINED_CACHE_WORDS:
        table.add_column(words, justify="right")
    for name, cells in zip(cache_names([cache.path for cache in caches]), cells_by_cache(caches, means), strict=True):
        table.add_row(name, *cells)
    yield table


def _summary(outcome: Outcome, samples: list[Sample]) -> RunSummary:
    run, counts, teacher = outcome.run, _counts(outcome.run), _teacher_measures(outcome.run)
    prints = [cache.fingerprint for cache in run.held_out]
    known = read_provenance(run.out)
    return RunSummary(
        **provenance(run, known.begun_from if known else ()).model_dump(),
        steps=run.total_steps,
        stages=tuple(planned(stage) for stage in run.stages),
        trainable_parameters=counts.trainable,
        total_parameters=counts.total,
        teacher_measures=next(iter(teacher), None),
        teacher_measures_by_cache=dict(zip(prints, teacher, strict=True)) if len(prints) > 1 else {},
        samples=samples,
    )


def _counts(run: Run) -> ParameterCounts:
    """The parameters that any stage trained, and all, also where each process holds only a part of them."""
    shapes = parameter_shapes(run.engine)
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if not is_beside(name)}
    held = run.student.parameter_counts()
    frozen = held.total - held.trainable
    return ParameterCounts(sum(sizes.get(name, 0) for name in run.trained), sum(sizes.values()) + frozen)


def _teacher_measures(run: Run) -> list[dict[str, float]]:
    """The teacher's own numbers over the rows of each held-out cache; those known only as a bound are left out."""
    size, count = run.settings.training.micro_batch_size, run.settings.evaluation.max_rows
    measures = []
    for cache in run.held_out:
        head = run.teacher_head or run.student.head
        scores = teacher_scores(head, cache, rows_in_order(cache, size, count), run.processes.device)
        found = {name: getattr(scores, name) for name in MEASURE_WORDS}
        measures.append({name: i.value for name, i in found.items() if i and not i.at_least})
    return measures
