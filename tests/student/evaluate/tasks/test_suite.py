"""Tasks by their names, and who is measured on them."""

import json
from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.evaluate.tasks import suite as module
from student.evaluate.tasks.needle import LENGTHS
from student.evaluate.tasks.suite import asked_for, compare_all, measure_tasks, scores_of, takes_text
from tests.helpers.task_writers import small_writer

TEXT = [" ".join(f"The server number {n} calls os.path.join{n % 5} before the client answers." for n in range(40))]


def test_all_is_all_that_can_be_made(tmp_path: Path) -> None:
    writer = small_writer("xlstm", tmp_path)
    without = asked_for(["all"], writer, None, 1)
    assert [task.name for task in without.tasks] == ["arithmetic", "copying", *LENGTHS]
    assert not without.writing
    asked = asked_for(["all"], writer, TEXT, 1)
    assert [task.name for task in asked.tasks] == ["arithmetic", "copying", "cloze", "names", *LENGTHS]
    assert asked.writing
    assert all(len(task.examples) == 1 for task in asked.tasks)


def test_names_are_ours_files_or_lm_evals(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"prompt": "a", "answer": "b"}))
    (tmp_path / "other.yaml").write_text("task: other\n")
    names = ["needle-512", str(mine), "needle-512", "hellaswag", str(tmp_path / "other.yaml")]
    asked = asked_for(names, small_writer("xlstm", tmp_path), None, 2)
    assert [task.name for task in asked.tasks] == ["needle-512", "mine"]
    assert asked.others == ["hellaswag", str(tmp_path / "other.yaml")]


def test_some_tasks_take_no_text() -> None:
    assert not takes_text(["arithmetic", "copying", "mine.jsonl", "hellaswag"])
    assert all(takes_text(["arithmetic", name]) for name in ("all", "needle", "needle-4k", "cloze", "names", "writing"))


def test_tasks_have_a_hundred_examples_and_slow_ones_fewer(tmp_path: Path) -> None:
    asked = asked_for(["arithmetic", "needle-512"], small_writer("xlstm", tmp_path), None)
    assert [len(task.examples) for task in asked.tasks] == [100, 20]


@pytest.mark.parametrize("name", ["cloze", "names", "writing"])
def test_what_is_made_of_text_needs_text(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--tasks {name}: made of held-out text; give --cache"):
        asked_for([name], small_writer("xlstm", tmp_path), None)


@pytest.mark.parametrize(("name", "what"), [("cloze", "word"), ("names", "API name")])
def test_text_that_gives_no_example_is_said(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no {what} stands twice"):
        asked_for([name], small_writer("xlstm", tmp_path), ["nothing"])


def test_who_cannot_read_a_text_has_no_score(tmp_path: Path) -> None:
    student, teacher = small_writer("xlstm", tmp_path), small_writer("transformer", tmp_path)
    tasks = asked_for(["needle-512", "needle-1k"], student, None, 1).tasks
    said: list[str] = []
    ours = scores_of(student, tasks, said.append)
    assert said == ["needle-512", "needle-1k"]
    theirs = scores_of(teacher, tasks, said.append)
    assert said[2:] == ["needle-512"]
    assert [scores is None for scores in ours] == [False, False]
    assert [scores is None for scores in theirs] == [False, True]
    found = compare_all(tasks, ours, theirs)
    assert [(each.task, each.measure, each.teacher is None) for each in found] == [
        ("needle-512", "likelihood", False),
        ("needle-512", "generation", False),
        ("needle-1k", "likelihood", True),
        ("needle-1k", "generation", True),
    ]


def test_a_teacher_recovers_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("student.evaluate.tasks.writing.WRITTEN_TOKENS", 8)
    teacher = small_writer("transformer", tmp_path)
    found = measure_tasks(teacher, teacher, ["arithmetic", "writing"], TEXT, limit=12)
    likely = found.tasks[0]
    assert likely.recovery is not None
    assert likely.recovery.value == 1.0
    student, itself = found.writing[:2], found.writing[2:4]
    assert [each.perplexity for each in student] == [each.perplexity for each in itself]
    assert [each.by for each in found.writing] == ["student"] * 2 + ["teacher"] * 2 + ["the text itself"]


def test_nobody_judges_writing_without_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --teacher"):
        measure_tasks(small_writer("xlstm", tmp_path), None, ["writing"], TEXT)


def test_an_unknown_name_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(module, "scores_of", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--tasks hellaswagg: none of our own, and lm-eval is not installed; pip inst"):
        measure_tasks(small_writer("xlstm", tmp_path), None, ["arithmetic", "hellaswagg"], None)
