"""The table of `student-eval` and its notes; numbers of real students are in tests/e2e/test_evaluate.py."""

import json

import pytest

from delta_common.console import print_tables
from delta_common.errors import UserError
from student.cli import evaluate as module
from student.evaluate.bootstrap import Interval
from student.evaluate.held_out import HeldOut, Scores

SURE = Interval(2.0, 1.5, 2.5, False)
UNSURE = Interval(3.0, None, None, False)
BOUND = Interval(4.0, None, None, True)


def found(student: Scores, teacher: Scores | None = None, documents: int = 100) -> HeldOut:
    return HeldOut(student, teacher, 1234, 7, [{"tokens": 12.0}] * documents)


def table(measured: HeldOut, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_tables(module._table(measured, "there"))
    return capsys.readouterr().out.splitlines()


def test_a_table_has_a_line_for_each_measure_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(found(Scores(cross_entropy=SURE, kl=BOUND)), capsys)
    text = "\n".join(lines)
    assert "held out: there" in text
    assert "1,234 tokens, 100 documents, 7 rows" in text
    assert "2.0" in text
    assert "1.5" in text
    assert "≥ 4.0" in text
    assert "the teacher" not in lines[3]
    assert "alibration" not in text


def test_the_teacher_stands_beside_the_student(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(table(found(Scores(cross_entropy=SURE, kl=SURE), Scores(cross_entropy=UNSURE)), capsys))
    assert "the teacher" in text
    assert "3.0" in text
    assert "–" in text, "the teacher has no KL from itself"


@pytest.mark.parametrize(
    ("measured", "notes"),
    [
        (found(Scores(kl=SURE)), []),
        (found(Scores(kl=SURE), documents=1), []),
        (found(Scores(kl=SURE), documents=5), ["5 documents are few"]),
        (found(Scores(kl=BOUND)), ["KL is a lower bound"]),
        (found(Scores(), Scores(cross_entropy=SURE)), []),
        (
            found(Scores(), Scores(cross_entropy=UNSURE)),
            ["The teacher's cross-entropy is the mean over the whole cache"],
        ),
        (found(Scores(), Scores(cross_entropy=BOUND)), ["The teacher's cross-entropy is a lower bound"]),
    ],
)
def test_what_a_reader_must_know_of_the_numbers_is_noted(measured: HeldOut, notes: list[str]) -> None:
    said = module._notes(measured)
    assert len(said) == len(notes)
    assert all(words.startswith(note) for words, note in zip(said, notes, strict=True))


def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(json.dumps(module._as_json(found(Scores(kl=BOUND)), "there")))
    assert said["measured_on"] == "there"
    assert said["student"]["kl"]["at_least"] is True
    assert said["teacher"] is None
    assert len(said["by_document"]) == 100


def test_something_must_be_measured_on() -> None:
    with pytest.raises(UserError, match="nothing to measure on; give --cache HELDOUT or --corpus FILE"):
        module.app(["run"], result_action="return_value", exit_on_error=False)
