"""What of the settings decides a run's numbers, and how help lists them."""

import pytest

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.model.shape import StudentSettings
from student.settings import TrainSettings


def test_kernels_do_not_count_as_what_decides_a_run() -> None:
    naive = TrainSettings(model=StudentSettings(kernels="naive"))
    assert naive.deciding(world_size=1) == TrainSettings().deciding(world_size=1)
    assert naive.model_dump()["model"]["kernels"] == "naive"


TRANSFER = "--stages=[{train: mixers, loss: transfer, steps: 5, learning_rate: 0.01}, {body_learning_rate: 0.5}]"


def settings(*options: str) -> TrainSettings:
    return load_settings(TrainSettings, None, options)


def test_settings_without_stages_decide_what_they_did_before_there_were_any() -> None:
    assert "stages" not in settings().deciding(world_size=1)
    kept = settings("--model.preset=hybrid", TRANSFER).deciding(world_size=1)["stages"]
    assert [kept[number]["steps"] for number in ("0", "1")] == [5, None]


def test_a_stage_has_its_own_rates_and_loss_or_those_of_the_run() -> None:
    whole = settings("--model.preset=hybrid", TRANSFER, "--optimizer.learning_rate=0.25")
    first, second = (whole.of_stage(stage) for stage in whole.stages)
    assert (first.optimizer.learning_rate, first.optimizer.body_learning_rate) == (0.01, None)
    assert (second.optimizer.learning_rate, second.optimizer.body_learning_rate) == (0.25, 0.5)
    assert second.distillation == whole.distillation
    own = settings("--stages=[{distillation: {temperature_init: 1}}]")
    assert own.of_stage(own.stages[0]).distillation.temperature_init == 1
    assert own.of_stage(own.stages[0]).distillation.alpha_init == own.distillation.alpha_init


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{loss: transfer}]", r"stages\.0: loss transfer trains the mixers alone; write train: mixers too"),
        (
            "[{loss: transfer, train: mixers, distillation: {}}]",
            "transfer has no teacher.s term; leave",
        ),
        ("[{train: mixers, body_learning_rate: 0.1}]", "body_learning_rate is of weights that train mixers does not"),
        ("[{train: body, learning_rate: 0.1}]", "stages.0: learning_rate is of weights that train body does not train"),
        ("[{}, {steps: 3}]", r"stages\.0\.steps: missing; only the last stage may leave them out"),
        ("[{steps: 0}]", r"stages\.0\.steps: Input should be greater than or equal to 1 \(got 0\)"),
        ("[{learning_rate: 0}]", r"stages\.0\.learning_rate: Input should be greater than 0"),
        ("[{train: heads}]", r"stages\.0\.train: Input should be 'all', 'mixers' or 'body' \(got 'heads'\)"),
        ("[{los: transfer}]", r"unknown key 'stages\.0\.los'; did you mean 'loss'\?"),
        ("[{distillation: {alpha: 1}}]", r"unknown key 'stages\.0\.distillation\.alpha'; did you mean 'alpha_"),
        ("{steps: 3}", "stages: Input should be a valid tuple"),
    ],
)
def test_a_stage_that_makes_no_sense_is_one_line(stages: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        settings("--model.preset=transplant", f"--stages={stages}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["train: mixers, loss: transfer", "train: body", "body_learning_rate: 0.1"])
def test_a_student_of_its_own_has_no_parts(stage: str) -> None:
    with pytest.raises(UserError, match=r"stages\.0\.\w+.*: a student of model\.preset paper does not begin with its"):
        settings(f"--stages=[{{{stage}}}]")


def test_a_body_that_is_kept_is_not_trained_alone() -> None:
    kept = ("--model.preset=hybrid", "--optimizer.body_learning_rate=0")
    with pytest.raises(UserError, match=r"train body: optimizer\.body_learning_rate is 0; give the stage"):
        settings(*kept, "--stages=[{train: body}]")
    assert settings(*kept, "--stages=[{train: body, body_learning_rate: 0.1}]").stages
