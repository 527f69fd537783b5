"""The progress line off a terminal, on a terminal, and numbers as a person says them."""

import sys

import pytest

from delta_common import progress
from delta_common.progress import ProgressLine, byte_size, duration


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_off_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine("building", 1000) as line:
        for second in range(1, 21):
            clock.now = 100.0 + second
            line.update(50 * second, "rows")
    assert capsys.readouterr().err.splitlines() == [
        "building: 50/1,000 rows · 19 s left",
        "building: 550/1,000 rows · 9 s left",
        "building: 1,000/1,000 rows · took 20 s",
    ]


def test_a_resumed_job_is_judged_by_its_own_work(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("building", 1000, done=900) as line:
        line.update(900, "rows")
        clock.now += 20
        line.update(950, "rows")
    assert capsys.readouterr().err.splitlines() == [
        "building: 900/1,000 rows · time left unknown",
        "building: 950/1,000 rows · 20 s left",
    ]


def test_one_process_of_several_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("building", 2, shown=False) as line:
        line.update(2, "rows")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_live_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressLine("building", 4) as line:
        line.update(4, "rows")
    shown = capsys.readouterr().err
    assert "4/4 rows" in shown
    assert "\x1b[" in shown


def test_durations_as_a_person_says_them() -> None:
    assert [duration(s) for s in (8, 59.6, 200, 18420, 183600)] == [
        "8 s",
        "1 min 00 s",
        "3 min 20 s",
        "5 h 07 min",
        "2 d 3 h",
    ]


def test_sizes_have_binary_units() -> None:
    sizes = [byte_size(b) for b in (812, 1024, 3.4 * 2**20, 2**30, 5 * 2**40, 2**50)]
    assert sizes == ["812 B", "1.0 KiB", "3.4 MiB", "1.0 GiB", "5.0 TiB", "1024.0 TiB"]
