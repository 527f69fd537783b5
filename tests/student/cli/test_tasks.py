"""`student-eval --tasks` as a user meets it: a run and its export beside their teacher."""

import json
from pathlib import Path
from typing import Any

import pytest

from student.cli import evaluate as program
from tests.helpers.causal_students import save_llama
from tests.helpers.made_exports import make_export, run
from tests.helpers.tiny_teacher import save_tiny_teacher

QUICK = ("--limit", "3")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its export, of a teacher that reads 1200 tokens, and a file of held-out text."""
    folder = tmp_path_factory.mktemp("tasks")
    teacher = save_tiny_teacher(folder / "teacher", max_position_embeddings=1200)
    (folder / "heldout.txt").write_text("The server calls os.path.join and the client waits for the server. " * 20)
    return make_export(folder, teacher)


def measured(capsys: pytest.CaptureFixture[str], *words: Path | str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(program, *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_student_is_measured_beside_its_teacher(made: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = "arithmetic,cloze,needle-512,needle-2k,writing"
    found = measured(capsys, made / kind, "--tasks", names, "--corpus", made / "heldout.txt", *QUICK)
    assert found["student"] == str(made / kind)
    assert found["has_teacher"] is True
    by_task = {(each["task"], each["measure"]): each for each in found["tasks"]}
    assert len(by_task) == 8
    for (task, _), each in by_task.items():
        assert 0 <= each["student"]["value"] <= 1
        assert len(each["student_by_example"]) == each["examples"] == 3
        assert (each["teacher"] is None) == (task == "needle-2k")
    assert [each["by"] for each in found["writing"]] == ["student"] * 2 + ["teacher"] * 2 + ["the text itself"]


def test_run_and_export_are_one_student(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--tasks", "copying", "--limit", "6")
    assert measured(capsys, made / "run", *asked)["tasks"] == measured(capsys, made / "export", *asked)["tasks"]


def test_a_run_takes_the_text_it_was_evaluated_on(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(program, made / "export", "--tasks", "cloze") == 2
    assert "give --cache HELDOUT or --corpus FILE" in capsys.readouterr().err
    assert run(program, made / "run", "--tasks", "cloze") == 2
    assert "no word stands twice" in capsys.readouterr().err, "its documents are nine words long"


@pytest.mark.parametrize("preset", ["transformer", "hybrid"])
def test_students_of_other_kinds_know_their_teacher(
    made: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_export(tmp_path, made / "teacher", preset)
    asked = ("--tasks", "needle-512", *QUICK)
    of_run, of_export = (measured(capsys, folder / kind, *asked)["tasks"] for kind in ("run", "export"))
    assert of_run == of_export
    assert all(each["teacher"] is not None for each in of_run)


def test_a_model_of_unknown_origin_stands_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_llama(made / "llama")
    assert run(program, made / "llama", "--tasks", "arithmetic", *QUICK) == 0
    printed = capsys.readouterr().out
    assert "does not say who its teacher was" in printed
    assert "recovery" in printed
    (made / "mine.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    found = measured(capsys, made / "llama", "--tasks", made / "mine.jsonl", "--teacher", made / "llama")
    assert found["tasks"][0]["task"] == "mine"
    assert found["tasks"][0]["teacher"] is not None


def test_tables_say_what_was_too_long(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--tasks", "needle-2k,writing", "--corpus", made / "heldout.txt", *QUICK)
    assert run(program, made / "export", *asked) == 0
    printed = capsys.readouterr().out
    assert "–: the task's texts are longer than the model's context." in printed
    assert "writing, judged by the teacher" in printed
    assert "the text itself" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", " ,"], "--tasks: no name in it"),
        (["--tasks", "copying", "--limit", "0"], "--limit 0: give 1 or more"),
        (["--teacher", "x"], "--teacher and --limit go with --tasks"),
        (["--tasks", "copying", "--teacher", "/nowhere/at/all"], "no such folder"),
        (["--tasks", "none.jsonl"], "--tasks none.jsonl: not readable"),
    ],
)
def test_a_wrong_word_is_one_line(made: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(program, made / "export", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("student-eval: error")]
    assert said in line
