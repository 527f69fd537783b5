"""Stages: which steps they take, what they are called, and lengths that do not fit."""

import pytest

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.run.files import PlannedStage
from student.run.stages import Stage, planned, stage_at, stages_of
from student.settings import TrainSettings

TWO = "--stages=[{train: mixers, loss: transfer, steps: 5}, {}]"


def stages(*options: str, steps_per_epoch: int = 8) -> tuple[Stage, ...]:
    settings = load_settings(TrainSettings, None, ["--model.preset=hybrid", *options])
    return stages_of(settings, steps_per_epoch)


@pytest.mark.parametrize(
    ("options", "borders"),
    [
        ([], [(0, 80)]),
        (["--training.max_steps=7"], [(0, 7)]),
        (["--training.max_steps=99"], [(0, 80)]),
        ([TWO], [(0, 5), (5, 80)]),
        ([TWO, "--training.max_steps=7"], [(0, 5), (5, 7)]),
        (["--stages=[{steps: 2}, {steps: 3}, {steps: 1}]"], [(0, 2), (2, 5), (5, 6)]),
    ],
)
def test_they_follow_each_other(options: list[str], borders: list[tuple[int, int]]) -> None:
    found = stages(*options)
    assert [(stage.start, stage.stop) for stage in found] == borders
    assert [stage.number for stage in found] == list(range(1, len(borders) + 1))
    assert [stage.is_last for stage in found] == [*([False] * (len(borders) - 1)), True]
    for step in range(borders[-1][1]):
        first, stop = borders[stage_at(found, step).number - 1]
        assert first <= step < stop
    assert stage_at(found, borders[-1][1]) is found[-1]


def test_they_have_names() -> None:
    assert [stage.words for stage in stages()] == ["training"]
    assert [stage.words for stage in stages(TWO)] == ["stage 1 of 2: attention transfer", "stage 2 of 2: distillation"]
    assert planned(stages(TWO)[0]) == PlannedStage(name="attention transfer", train="mixers", steps=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([TWO, "--training.max_steps=5"], r"stages\.1: .* 6 steps or more, and training\.max_steps 5 allows 5"),
        ([TWO, "--training.max_steps=4"], r"stages\.0: .* 5 steps or more, and training\.max_steps 4 allows 4"),
        (["--stages=[{steps: 81}]"], r"stages\.0: .* 81 steps .* training\.epochs 10 of 8 steps allows 80; .*epochs$"),
        (["--stages=[{steps: 80}, {}]"], r"stages\.1: the stages up to this one take 81 steps or more"),
    ],
)
def test_a_length_that_does_not_fit_is_one_line(options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        stages(*options)
