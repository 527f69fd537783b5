"""The students that are compared are what student-train takes."""

import pytest

from delta_common.settings_file import load_settings
from experiments.worth.plan import ROOT
from experiments.worth.students import KINDS, TABLES, Kind
from student.settings import TrainSettings


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_is_a_student_of_student_train(kind: Kind) -> None:
    settings = load_settings(TrainSettings, ROOT / "configs" / kind.config, [f"--{k}={v}" for k, v in kind.options])
    expected = {"paper": "paper", "transformer": "transformer", "transplant": "transplant", "hybrid": "hybrid"}
    assert settings.model.preset == expected[kind.name.partition("-")[0]]
    assert (settings.distillation.alpha_init == 0) == kind.name.endswith("-ce")


def test_names_differ_and_each_stands_in_a_table() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert {kind for table in TABLES.values() for kind in table} == set(KINDS)
