"""Scores, their ratio, and intervals that know of pairs and of documents."""

import numpy as np
import pytest

from student.evaluate.tasks.examples import Example, Task
from student.evaluate.tasks.recovery import compare, compared


def test_recovery_is_the_ratio_of_the_means() -> None:
    found = compared("t", "generation", [1, 0, 0, 0, 1] * 20, [1, 1, 0, 1, 1] * 20, range(100))
    assert found.student is not None
    assert found.teacher is not None
    assert found.recovery is not None
    assert (found.student.value, found.teacher.value, found.recovery.value) == pytest.approx((0.4, 0.8, 0.5))
    assert found.recovery.low is not None
    assert found.recovery.high is not None
    assert found.recovery.low < 0.5 < found.recovery.high


def test_student_and_teacher_are_drawn_together() -> None:
    scores = np.random.default_rng(0).integers(0, 2, 50).astype(float).tolist()
    found = compared("t", "generation", scores, scores, range(50))
    assert found.recovery is not None
    assert (found.recovery.low, found.recovery.value, found.recovery.high) == (1.0, 1.0, 1.0)
    assert found.student is not None
    assert found.student.low is not None
    assert found.student.low < found.student.value


def test_examples_of_one_document_count_as_one_draw() -> None:
    scores = [float(number // 10 % 2) for number in range(100)]
    alone, together = (
        compared("t", "m", scores, None, groups) for groups in (range(100), [n // 10 for n in range(100)])
    )
    widths = [each.student.high - each.student.low for each in (alone, together)]  # type: ignore[operator, union-attr]
    assert widths[1] > 2 * widths[0]


def test_a_teacher_that_is_never_right_gives_no_recovery() -> None:
    assert compared("t", "m", [1.0, 0.0], [0.0, 0.0], range(2)).recovery is None


def test_a_teacher_that_is_hardly_ever_right_gives_no_interval() -> None:
    found = compared("t", "m", [0.0] * 9 + [1.0], [1.0] + [0.0] * 9, range(10))
    assert found.recovery is not None
    assert (found.recovery.value, found.recovery.low, found.recovery.high) == (1.0, None, None)


def test_a_task_has_a_line_for_each_measure_and_chance_where_there_are_choices() -> None:
    task = Task("t", tuple(Example("p", "a", ("a", "b"), group) for group in range(3)))
    likely, written = compare(task, {"likelihood": [1.0, 0.0, 1.0], "generation": [0.0, 0.0, 1.0]}, None)
    assert (likely.measure, likely.chance, likely.examples) == ("likelihood", 0.5, 3)
    assert (written.measure, written.chance, written.teacher, written.recovery) == ("generation", None, None, None)
    (only,) = compare(task, None, {"generation": [1.0, 1.0, 1.0]})
    assert only.student is None
    assert only.teacher is not None
