"""What every command line shares: words parsed, errors in one line, exit codes, nothing slow imported for help."""

import subprocess
import sys

import pytest
from cyclopts import App

from delta_common.command import EXIT_STOPPED, EXIT_USAGE, run_app, run_command
from delta_common.errors import UserError

app = App(name="tool")


@app.default
def tool(number: int, *, fails: bool = False) -> int:
    if fails:
        raise UserError("--fails: leave it out")
    return number


def exit_code(*words: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["called-otherwise", *words])
    with pytest.raises(SystemExit) as stop:
        run_app(app)
    return stop.value.code


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_is_what_the_command_returns(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(str(code), monkeypatch=monkeypatch) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("1", "--fails"), "tool: error: --fails: leave it out\n"),
        (("one",), "(see tool --help)\n"),
        ((), "(see tool --help)\n"),
        (("1", "--other"), "(see tool --help)\n"),
    ],
)
def test_what_a_user_can_remedy_is_one_line_and_exit_code_two(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*words, monkeypatch=monkeypatch) == EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.err.startswith("tool: error: ")
    assert printed.err.endswith(said)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_help_is_printed_and_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help", monkeypatch=monkeypatch) == 0
    assert "Usage: tool" in capsys.readouterr().out


def test_lines_of_a_message_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("first\nsecond")

    assert run_command("tool", fail) == EXIT_USAGE
    assert capsys.readouterr().err == "tool: error: first second\n"


def test_a_stop_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> int:
        raise KeyboardInterrupt

    assert run_command("tool", stop) == EXIT_STOPPED
    assert capsys.readouterr().err == "tool: stopped; run the same command again to continue\n"


def test_other_errors_are_not_hidden() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command("tool", fail)


@pytest.mark.parametrize(
    "module",
    ["teacher_cache.cli", *(f"student.cli.{name}" for name in ("train", "evaluate", "report", "export", "generate"))],
)
def test_help_comes_without_torch(module: str) -> None:
    script = (
        f"import sys; sys.argv = ['x', '--help']; from {module} import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "slow = {'torch', 'transformers', 'deepspeed', 'zarr'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
