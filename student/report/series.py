"""Curves of runs as a report draws them: each measure over steps, thinned to what a chart can show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from student.run.by_cache import TERMS
from student.run.files import RunFiles
from student.run.records import JsonObject
from student.run.student_words import cache_names

MOST_POINTS = 400
"""Points per line at most; beyond it, each point is the mean of consecutive steps."""


@dataclass(frozen=True)
class Measure:
    """A curve: its key in the records it is taken from, and its name."""

    key: str
    name: str
    source: Literal["metrics", "evaluations", "costs"] = "metrics"
    note: str = ""
    """What to know before reading it."""


FROBENIUS_NOTE = (
    "The student's output is normed and cannot reach raw states of massive activation: "
    "with `channels: raw` this may hardly fall, whatever is learnt."
)

MFU_NOTE = "Operations in products with weights over what the cards could do; attention's own products are left out."

TRANSFER_NOTE = "What the mixers miss of softmax attention on the same input; 0 is attention itself."

MEASURES = (
    Measure("loss", "Loss"),
    Measure("cross_entropy", "Cross-entropy, nats per token"),
    Measure("kl", "KL at T, nats per token"),
    Measure("frobenius", "Frobenius term", note=FROBENIUS_NOTE),
    Measure("gradient_norm", "Gradient norm, before clipping"),
    Measure("alpha", "α, the teacher's weight"),
    Measure("temperature", "T, the temperature"),
    Measure("beta", "β, the Frobenius term's weight"),
    Measure("learning_rate", "Learning rate"),
    Measure("transfer", "Attention transfer, relative squared error", note=TRANSFER_NOTE),
    Measure("cross_entropy", "Held-out cross-entropy, nats per token", "evaluations"),
    Measure("kl", "Held-out KL at T = 1, nats per token", "evaluations"),
    Measure("calibration_error", "Held-out calibration error", "evaluations"),
    Measure("tokens_per_second", "Tokens per second", "costs"),
    Measure("mfu", "MFU, share of the cards' matrix peak", "costs", MFU_NOTE),
)


@dataclass(frozen=True)
class Line:
    """One run's curve: a value for each step; `run` counts from 0."""

    run: int
    steps: list[float]
    values: list[float]
    cache: int | None = None
    """Of several caches of a single run, which the curve is of, from 0."""

    @property
    def number(self) -> int:
        """Among the lines of its chart, for colours."""
        return self.run if self.cache is None else self.cache


@dataclass(frozen=True)
class Chart:
    """A measure with a line for each run that has one."""

    measure: Measure
    lines: list[Line]
    caches: tuple[str, ...] = ()
    """Names of several caches of a single run, where the lines are of these."""


def charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Every measure the runs have; a term that is 0 throughout is left out, and so is a single held-out point."""
    found = (chart for measure in MEASURES for chart in _charts_of(runs, measure))
    return [chart for chart in found if any(any(line.values) for line in chart.lines)]


def _charts_of(runs: Sequence[RunFiles], measure: Measure) -> Iterator[Chart]:
    """A measure's chart; where there are several caches, of one run another by cache, of several runs one for each."""
    held_out = _held_out_names(runs)
    if measure.source != "evaluations" or len(held_out) < 2:
        yield Chart(measure, _lines([_records(run, measure) for run in runs], measure))
    elif len(runs) > 1:
        for key, name in held_out.items():
            of_cache = [run.held_out[key].records if key in run.held_out else [] for run in runs]
            yield Chart(replace(measure, name=f"{measure.name}, {name}"), _lines(of_cache, measure))
    if len(runs) == 1:
        yield from _by_cache(runs[0], measure, held_out)


def _by_cache(run: RunFiles, measure: Measure, held_out: Mapping[str, str]) -> Iterator[Chart]:
    """A chart with a line for each of several caches that the run trained on or was measured on, if there are."""
    if measure.source == "evaluations" and len(held_out) > 1:
        names, records = tuple(held_out.values()), [each.records for each in run.held_out.values()]
        yield Chart(measure, _lines(records, measure, by_cache=True), names)
    elif measure.source == "metrics" and measure.key in TERMS and run.provenance and run.provenance.caches:
        names = tuple(cache_names([cache.path for cache in run.provenance.caches]))
        steps = [line for line in run.metrics if line.get("by_cache")]
        records = [[{"step": line["step"], **line["by_cache"][n]} for line in steps] for n, _ in enumerate(names)]
        yield Chart(replace(measure, name=f"{measure.name}, by cache"), _lines(records, measure, by_cache=True), names)


def _held_out_names(runs: Sequence[RunFiles]) -> dict[str, str]:
    """Names of the held-out caches by fingerprint; empty unless a run was measured on several."""
    if all(len(run.held_out) < 2 for run in runs):
        return {}
    paths = {key: each.path for run in runs for key, each in run.held_out.items()}
    return dict(zip(paths, cache_names(list(paths.values())), strict=True))


def _lines(sources: Sequence[list[JsonObject]], measure: Measure, *, by_cache: bool = False) -> list[Line]:
    """A line for each run, or for each cache of a single run, that has numbers."""
    lines = []
    for number, records in enumerate(sources):
        points = _finite(records, measure.key)
        if len(points) > (1 if measure.source == "evaluations" else 0):
            steps, values = _thinned(points)
            lines.append(Line(0, steps, values, number) if by_cache else Line(number, steps, values))
    return lines


def _records(run: RunFiles, measure: Measure) -> list[JsonObject]:
    if measure.source == "costs":
        return [
            {"step": cost.step, "tokens_per_second": cost.tokens / cost.seconds, "mfu": cost.mfu} for cost in run.costs
        ]
    return run.metrics if measure.source == "metrics" else run.evaluations


def _finite(records: list[JsonObject], key: str) -> list[tuple[float, float]]:
    """(step, value) in the order of steps, without values that are not finite, which cannot be drawn."""
    points = [(record["step"], record[key]) for record in records if key in record and "step" in record]
    return sorted((s, v) for s, v in points if isinstance(v, int | float) and np.isfinite(v))


def _thinned(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    if len(points) <= MOST_POINTS:
        return [step for step, _ in points], [value for _, value in points]
    parts = np.array_split(np.array(points, np.float64), MOST_POINTS)
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].round(1).tolist(), means[:, 1].tolist()
