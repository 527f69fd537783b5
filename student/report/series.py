"""Curves of runs as a report draws them: each measure over steps, thinned to what a chart can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from student.run.files import RunFiles

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
)


@dataclass(frozen=True)
class Line:
    """One run's curve: a value for each step; `run` counts from 0."""

    run: int
    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Chart:
    """A measure with a line for each run that has one."""

    measure: Measure
    lines: list[Line]


def charts(runs: Sequence[RunFiles]) -> list[Chart]:
    """Every measure the runs have; a term that is 0 throughout is left out, and so is a single held-out point."""
    found = (Chart(measure, _lines(runs, measure)) for measure in MEASURES)
    return [chart for chart in found if any(any(line.values) for line in chart.lines)]


def _lines(runs: Sequence[RunFiles], measure: Measure) -> list[Line]:
    lines = []
    for number, run in enumerate(runs):
        points = _finite(_records(run, measure), measure.key)
        if len(points) > (1 if measure.source == "evaluations" else 0):
            steps, values = _thinned(points)
            lines.append(Line(number, steps, values))
    return lines


def _records(run: RunFiles, measure: Measure) -> list[dict[str, Any]]:
    if measure.source == "costs":
        return [{"step": cost.step, "tokens_per_second": cost.tokens / cost.seconds} for cost in run.costs]
    return run.metrics if measure.source == "metrics" else run.evaluations


def _finite(records: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) in the order of steps, without values that are not finite, which cannot be drawn."""
    points = [(record["step"], record[key]) for record in records if key in record and "step" in record]
    return sorted((s, v) for s, v in points if isinstance(v, int | float) and np.isfinite(v))


def _thinned(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    if len(points) <= MOST_POINTS:
        return [step for step, _ in points], [value for _, value in points]
    parts = np.array_split(np.array(points, np.float64), MOST_POINTS)
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].round(1).tolist(), means[:, 1].tolist()
