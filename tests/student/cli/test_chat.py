"""A conversation in a terminal or a pipe: lines in, answers out, until the input ends."""

import io
import sys
from collections.abc import Iterator

import pytest

from delta_common.errors import UserError
from student.cli.chat import talk
from student.cli.generate import generate
from student.inference import chat as module
from student.inference.generate import Sampling
from student.inference.load import Writer


class Echo:
    """In the place of `Chat`: says what it is told in two pieces; `stop` is interrupted."""

    def __init__(self, *_: object) -> None:
        self.heard: list[str] = []

    def answer(self, words: str) -> Iterator[str]:
        self.heard.append(words)
        yield f"{len(self.heard)}:"
        if words == "stop":
            raise KeyboardInterrupt
        yield words


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(module, "Chat", Echo)
    return monkeypatch


def test_lines_are_answered_until_they_end(typed: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed.setattr(sys, "stdin", io.StringIO("one\n\n  \nstop\ntwo"))
    writer: Writer = object()  # type: ignore[assignment]
    assert talk(writer, Sampling(), 5) == 0
    assert capsys.readouterr().out == "1:one\n2:\n3:two\n"


def test_chat_and_prompts_are_two_things() -> None:
    with pytest.raises(UserError, match="--chat and --prompt"):
        generate("x", chat=True, prompt=("a",))  # type: ignore[arg-type]
