"""Shapes of the schedule, and alignment before it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from experiments.train.schedules import ALIGNMENT, Length, coefficients_at
from experiments.variants import DELTA
from student.loss.schedule import distillation_at
from student.loss.settings import DistillationSettings

SETTINGS, LENGTH = DistillationSettings(delta=0.1), Length(total=20, epoch=10)
OVER_ALL = DistillationSettings(delta=0.0, restart_each_epoch=False)


def temperatures(variant, settings):
    return [coefficients_at(variant, settings, step, LENGTH).temperature for step in range(LENGTH.total)]


def test_the_papers_shape_is_the_products_own() -> None:
    for step in range(LENGTH.total):
        wanted = distillation_at(SETTINGS, epoch=step // 10, step_in_epoch=step % 10, global_step=step)
        assert coefficients_at(DELTA, SETTINGS, step, LENGTH) == wanted


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_other_shapes_go_from_first_to_last(shape) -> None:
    over_all = temperatures(replace(DELTA, shape=shape), OVER_ALL)
    assert (over_all[0], over_all[-1]) == (2.0, 1.0)
    assert over_all == sorted(over_all, reverse=True)
    each_epoch = temperatures(replace(DELTA, shape=shape), SETTINGS)
    assert (each_epoch[0], each_epoch[9], each_epoch[10], each_epoch[19]) == (2.0, 1.0, pytest.approx(1.9), 1.0)


def test_linear_is_a_line_and_cosine_is_slow_at_its_ends() -> None:
    line = temperatures(replace(DELTA, shape="linear"), OVER_ALL)
    assert [a - b for a, b in pairwise(line)] == pytest.approx([1 / 19] * 19)
    curve = temperatures(replace(DELTA, shape="cosine"), OVER_ALL)
    assert curve[0] - curve[1] < 0.01 < 1 / 19 < curve[9] - curve[10]


def test_alignment_comes_first_and_the_schedule_begins_behind_it() -> None:
    variant = replace(DELTA, align_share=0.2)
    assert [coefficients_at(variant, SETTINGS, step, LENGTH) for step in range(4)] == [ALIGNMENT] * 4
    for step in range(4, 14):
        assert coefficients_at(variant, SETTINGS, step, LENGTH) == coefficients_at(DELTA, SETTINGS, step - 4, LENGTH)
