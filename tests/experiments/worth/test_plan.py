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


@pytest.mark.parametrize("changed", [f"{plan.CODE[2]}/any.py", f"{plan.CODE[0]}/any.yaml", *plan.SETTINGS])
def test_a_version_is_all_that_decides_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    for name in (changed, *plan.SETTINGS, f"{plan.CODE[0]}/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    digest = plan.code_digest.__wrapped__
    before = digest()
    (tmp_path / plan.CODE[0] / "notes.md").write_text("after")
    assert digest() == before
    (tmp_path / changed).write_text("after")
    assert digest() != before
