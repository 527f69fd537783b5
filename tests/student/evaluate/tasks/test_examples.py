"""Tasks out of files, and what is wrong with them in one line."""

import json
from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.evaluate.tasks.examples import Example, read_task


def write(folder: Path, *lines: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_file_is_a_task_of_its_name(tmp_path: Path) -> None:
    line = {"prompt": "2 + 2 =", "answer": " 4", "choices": [" 4", " 5"]}
    task = read_task(write(tmp_path, line, "", line, line), limit=2)
    assert task.name == "mine"
    assert task.examples == (
        Example("2 + 2 =", " 4", (" 4", " 5"), group=1),
        Example("2 + 2 =", " 4", (" 4", " 5"), group=3),
    )


def test_a_number_names_the_right_choice_which_is_not_written(tmp_path: Path) -> None:
    (example,) = read_task(write(tmp_path, {"prompt": "a", "answer": 1, "choices": ["b", "c"]})).examples
    assert (example.answer, example.writes) == ("c", False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: .*; give lines such as"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], "line 2: no 'answer'"),
        ([[1]], "line 1: "),
        ([{"prompt": "", "answer": "b"}], "none is empty"),
        ([{"prompt": "a", "answer": True}], "are texts"),
        ([{"prompt": "a", "answer": 2, "choices": ["b"]}], "line 1: tuple index out of range"),
        ([{"prompt": "a", "answer": -1, "choices": ["b"]}], "are texts"),
        ([{"prompt": "a", "answer": "c", "choices": ["b"]}], "one of the choices"),
        ([{"prompt": "a", "answer": "b", "choices": ["b", "b"]}], "no two are the same"),
        ([""], "no examples in it"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": 0, "choices": ["b"]}], "part them"),
    ],
)
def test_a_faulty_file_is_one_line(tmp_path: Path, lines: list[object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_task(write(tmp_path, *lines))
    assert "--tasks" in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: not readable as text"):
        read_task(tmp_path / "none.jsonl")
