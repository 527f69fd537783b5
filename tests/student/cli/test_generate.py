"""Texts of one batch are printed in order, each as soon as those before it have ended."""

import sys
from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.cli import generate as module
from student.cli.generate import TOGETHER, generate


def test_prompts_of_options_come_before_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  \ntwo\r\nthree")
    texts = list(module._texts(["zero"], tmp_path / "p.txt"))
    assert texts == ["zero", "one", "two", "three"]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"--prompts .*p\.txt: not readable as text .* give a UTF-8 file"):
        list(module._texts([], tmp_path / "p.txt"))


def test_prompts_are_grouped_into_batches() -> None:
    groups = list(module._groups(iter(str(number) for number in range(2 * TOGETHER + 1))))
    assert [len(group) for group in groups] == [TOGETHER, TOGETHER, 1]
    assert [text for group in groups for text in group] == [str(number) for number in range(2 * TOGETHER + 1)]


def test_the_first_text_is_printed_as_it_grows_and_others_when_it_is_their_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = module._InOrder(["a", "b", "c"])
    assert capsys.readouterr().out == "a"
    written.add(1, "1")
    written.end(1)
    assert capsys.readouterr().out == ""
    written.add(0, "0")
    assert capsys.readouterr().out == "0"
    written.end(0)
    assert capsys.readouterr().out == "\n\nb1\n\nc"
    written.end(2)
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "nothing to continue; give --prompt TEXT"), ({"max_new_tokens": 0}, "--max-new-tokens 0: give 1 or more")],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(
    options: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "student.inference.load", None)
    with pytest.raises(UserError, match=message):
        generate(Path("nowhere"), **options)
