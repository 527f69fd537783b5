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


def test_a_head_as_earlier_versions_had_it_decides_what_it_did_then() -> None:
    assert "head_transform" not in TrainSettings().deciding(world_size=1)["model"]
    plain = TrainSettings(model=StudentSettings(head_transform="none"))
    assert plain.deciding(world_size=1)["model"]["head_transform"] == "none"


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


def test_caches_decide_a_run_by_settings_of_their_own_alone() -> None:
    """Where they lie decides nothing; a checkpoint keeps their fingerprints and shares by itself."""
    listed = settings("--caches=[{path: a, share: 2}, {path: b, share: 1, distillation: {alpha_init: 0.7}}]")
    moved = settings("--caches=[{path: x/a, share: 2}, {path: b, share: 1, distillation: {alpha_init: 0.7}}]")
    assert listed.deciding(world_size=1) == moved.deciding(world_size=1)
    assert listed.deciding(world_size=1)["caches"]["1"]["distillation"]["alpha_init"] == 0.7
    assert "caches" not in settings("--caches=[{path: a}, {path: b}]").deciding(world_size=1)
    assert "caches" not in settings().deciding(world_size=1)


def test_the_loss_is_a_caches_own_or_the_runs() -> None:
    mixed = settings("--caches=[{path: a}, {path: b, distillation: {alpha_init: 0.7}}]", "--distillation.delta=0.1")
    assert [mixed.distillation_of(number).alpha_init for number in (0, 1)] == [0.8, 0.7]
    assert [mixed.distillation_of(number).delta for number in (0, 1)] == [0.1, 0.05]
    assert settings().distillation_of(0) == settings().distillation
    off = "{frobenius: {weight_init: 0, weight_final: 0}}"
    assert mixed.trains_map
    assert not settings(f"--caches=[{{path: a, distillation: {off}}}]").trains_map


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--caches=[{path: a, share: 0}, {path: b, share: 1}]", r"caches\.0\.share: Input should be greater than 0"),
        ("--caches=[{path: a, share: .inf}, {path: b, share: 1}]", r"caches\.0\.share: Input should be a finite"),
        ("--caches=[{path: a, share: 1}, {path: b}]", "b has no share and others have one; give every cache a share"),
        ("--caches=[{share: 1}]", r"caches\.0\.path missing"),
        ("--caches=[{path: a, shar: 1}]", r"unknown key 'caches\.0\.shar'; did you mean 'share'\?"),
        ("--evaluation={cache: a, caches: [b]}", "cache and caches are both given; name all of them in caches"),
    ],
)
def test_caches_that_make_no_sense_are_one_line(option: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        settings(option)
    assert "\n" not in str(error.value)


def test_held_out_caches_are_one_or_several() -> None:
    assert settings().evaluation.paths == ()
    assert settings("--evaluation.cache=a").evaluation.paths == ("a",)
    assert settings("--evaluation.caches=[a, b]").evaluation.paths == ("a", "b")
