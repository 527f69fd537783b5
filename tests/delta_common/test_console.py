"""What commands print on a terminal, through a pager and into a pipe."""

import json
import os

import pytest
from rich.table import Table

from delta_common.console import print_json, print_tables

LINES = 40


def tall_table() -> Table:
    """A table of 40 lines, its heading bold, one cell wider than any terminal here."""
    table = Table("name", "words")
    for number in range(LINES):
        table.add_row(str(number), "many words " * 12 if number == 7 else "few")
    return table


class Screen:
    """Stands for stdout on a terminal."""

    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("lines", "paged"), [("10", True), ("500", False)])
def test_only_what_is_taller_than_the_terminal_is_paged(
    lines: str, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, pages = Screen(), []
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("pydoc.pager", pages.append)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("LINES", lines)
    monkeypatch.delenv("LESS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_tables(tall_table())
    text = "".join(pages) if paged else screen.written
    assert bool(pages) == paged
    assert "\x1b[1m" in text
    assert not paged or os.environ["LESS"] == "-R"


@pytest.mark.parametrize(("columns", "width"), [(None, 100), ("60", 60), ("wide", 100)])
def test_a_pipe_gets_plain_whole_lines(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    print_tables(tall_table())
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= width
    assert printed.count("many") == 12


def test_json_is_indented_and_keeps_its_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "é", "sizes": [1, None]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": "é", "sizes": [1, None]}
    assert '\n  "name": "é",\n' in printed
