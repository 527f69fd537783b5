"""Scores of a student beside its teacher's, and what share of these it has, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from student.evaluate.bootstrap import Interval, intervals
from student.evaluate.tasks.answers import Scores
from student.evaluate.tasks.examples import Task


@dataclass(frozen=True)
class Compared:
    """A measure of a task. A score is the mean over examples; what was not measured is None."""

    task: str
    measure: str
    """`likelihood` or `generation`; of a task of lm-eval its own name of the metric."""
    examples: int
    student: Interval | None
    teacher: Interval | None
    recovery: Interval | None
    """The student's score over the teacher's; None also where the teacher's is 0."""
    chance: float | None = None
    """The score of guessing, where one of several choices is right."""
    student_by_example: Sequence[float] | None = None
    teacher_by_example: Sequence[float] | None = None


def compare(task: Task, student: Scores | None, teacher: Scores | None) -> list[Compared]:
    """All measures of a task; None for scores of who was not there, or could not read texts that long."""
    ours, theirs = student or {}, teacher or {}
    groups = [example.group for example in task.examples]
    found = [compared(task.name, name, ours.get(name), theirs.get(name), groups) for name in ours or theirs]
    guess = float(np.mean([1 / max(1, len(example.choices)) for example in task.examples]))
    return [replace(each, chance=guess) if each.measure == "likelihood" else each for each in found]


def compared(
    task: str,
    measure: str,
    student: Sequence[float] | None,
    teacher: Sequence[float] | None,
    groups: Sequence[int],
) -> Compared:
    """One measure, by example; `groups` are the documents that examples come from.

    Intervals are 95 %, from drawing documents with replacement, the same for student and teacher.
    """
    own = None if student is None else _intervals(student, student, groups)[0]
    other = None if teacher is None else _intervals(teacher, teacher, groups)[0]
    both = None if student is None or teacher is None else _intervals(student, teacher, groups)[2]
    return Compared(
        task,
        measure,
        len(groups),
        own,
        other,
        both,
        student_by_example=student,
        teacher_by_example=teacher,
    )


def _intervals(
    student: Sequence[float], teacher: Sequence[float], groups: Sequence[int]
) -> tuple[Interval, Interval, Interval | None]:
    """Of the student's mean, the teacher's, and their ratio."""
    group = np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(group, weights=x) for x in (student, teacher, np.ones(len(group)))], axis=1)
    own, other, ratio = intervals(sums.astype(np.float64), _means_and_ratio)
    if np.isnan(ratio.value):
        return own, other, None
    # A teacher that is right in so few examples that some resamples have none of them bounds no ratio.
    return own, other, Interval(ratio.value) if ratio.low is None or np.isnan(ratio.low) else ratio


def _means_and_ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    student, teacher, count = np.moveaxis(sums, -1, 0)
    ratio = np.divide(student, teacher, out=np.full_like(student, np.nan), where=teacher > 0)
    return np.stack([student / count, teacher / count, ratio], axis=-1)
