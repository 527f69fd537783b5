"""The folder of the experiments keeps one plan, and says where things lie."""

from dataclasses import replace
from pathlib import Path

import pytest

from delta_common.errors import UserError
from experiments.plan import ExperimentPlan, Folder

PLAN = ExperimentPlan("teacher", None, 8, rows=10, held_out=4, epochs=3, batch=4, options=("--model.heads=4",))


def test_a_plan_comes_back_as_it_was_settled(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new")
    folder.settle(PLAN)
    folder.settle(PLAN)
    assert folder.plan() == PLAN
    assert PLAN.steps == 6, "whole batches only"


def test_another_plan_is_refused_and_the_first_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.settle(PLAN)
    with pytest.raises(UserError, match="results of another size"):
        folder.settle(replace(PLAN, epochs=4))
    assert folder.plan() == PLAN


def test_results_are_of_finished_trainings_only(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for variant, seed, content in (("delta", 43, '{"seed": 43}'), ("ce", 42, '{"seed": 42}'), ("ce", 43, None)):
        out = folder.run(variant, seed)
        out.mkdir(parents=True)
        if content is not None:
            (out / "result.json").write_text(content)
    assert folder.results() == [{"seed": 42}, {"seed": 43}]


def test_step_seconds_are_read_by_variant(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.timing.write_text('{"ce": 0.5}')
    assert folder.step_seconds() == {"ce": 0.5}
