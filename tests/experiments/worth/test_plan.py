"""A folder takes results of one size and one version of the code."""

from dataclasses import replace
from pathlib import Path

import pytest

from delta_common.errors import UserError
from experiments.worth import plan
from experiments.worth.plan import WorthFolder
from tests.helpers.worth_results import PLAN, write_alone, write_result


def test_the_same_goes_on_also_where_teacher_and_corpus_lie_elsewhere(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    folder.settle(PLAN)
    moved = replace(PLAN, teacher="elsewhere", corpus="other")
    folder.settle(moved)
    assert folder.plan() == moved


def test_another_size_or_version_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WorthFolder(tmp_path)
    folder.settle(PLAN)
    with pytest.raises(UserError, match="of other rows lie here"):
        folder.settle(replace(PLAN, rows=65))
    monkeypatch.setattr(plan, "code_digest", lambda: "another")
    with pytest.raises(UserError, match="of another version of the code"):
        folder.settle(PLAN)
    assert folder.plan() == PLAN


def test_results_are_found(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    write_result(folder, "paper", 42, 1.0)
    write_alone(folder, "paper")
    assert [(each["name"], each["seed"]) for each in folder.found()] == [("paper", 42)]
    assert list(folder.alone()) == ["paper"]
