"""Every file in configs/ is one that the commands accept."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.run.stages import stages_of
from student.settings import TrainSettings
from student.train.engine import deepspeed_config
from student.train.processes import quiet_deepspeed
from teacher_cache.settings import BuildSettings
from tests.helpers import ROOT

CONFIGS = ROOT / "configs"
STUDENTS = sorted([*CONFIGS.glob("*student.yaml"), CONFIGS / "transplant.yaml", CONFIGS / "hybrid.yaml"])
BUILDS = sorted(set(CONFIGS.glob("*.yaml")) - set(STUDENTS))
DEEPSPEED = sorted((CONFIGS / "deepspeed").glob("*.json"))


def name(path: Path) -> str:
    return path.name


def test_there_is_something_to_check_and_nothing_else_in_the_folder() -> None:
    assert BUILDS
    assert STUDENTS
    assert DEEPSPEED
    files = {path for path in CONFIGS.rglob("*") if path.is_file()}
    assert files == {*BUILDS, *STUDENTS, *DEEPSPEED}


@pytest.mark.parametrize("path", BUILDS, ids=name)
def test_a_build_config_is_complete(path: Path) -> None:
    settings = load_settings(BuildSettings, path)
    assert settings.out is not None
    assert yaml.safe_load(path.read_text())["teacher"]["model"] == settings.teacher.model


@pytest.mark.parametrize("path", STUDENTS, ids=name)
def test_a_student_config_names_a_deepspeed_file_beside_it(path: Path) -> None:
    settings = load_settings(TrainSettings, path)
    assert settings.deepspeed is not None
    assert (path.parent / settings.deepspeed).is_file()


@pytest.mark.parametrize("preset", ["transplant", "hybrid"])
def test_a_student_that_begins_as_its_teacher_first_takes_over_its_attention(preset: str) -> None:
    settings = load_settings(TrainSettings, CONFIGS / f"{preset}.yaml")
    assert settings.model.preset == preset
    first, last = stages_of(settings, steps_per_epoch=500)
    assert (first.settings.loss, last.settings.loss, last.stop) == ("transfer", "distillation", 500)
    with pytest.raises(UserError, match=r"stages\.1: the stages up to this one take 62 steps or more"):
        stages_of(settings, steps_per_epoch=61)


@pytest.mark.parametrize("path", DEEPSPEED, ids=name)
def test_a_deepspeed_file_is_one_that_deepspeed_accepts(path: Path, tmp_path: Path) -> None:
    with quiet_deepspeed():
        from deepspeed.runtime.config import DeepSpeedConfig

        merged: dict[str, Any] = deepspeed_config(TrainSettings(deepspeed=path), world_size=1, out=tmp_path)
        assert (
            DeepSpeedConfig(merged).zero_optimization_stage
            == json.loads(path.read_text())["zero_optimization"]["stage"]
        )
