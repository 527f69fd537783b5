"""What every command line shares: words parsed, errors in one line, exit codes, nothing slow imported for help."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cyclopts import App

from delta_common.command import EXIT_NO_READER, EXIT_STOPPED, EXIT_UNFORESEEN, EXIT_USAGE, run_app, run_command
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


def test_an_unforeseen_error_is_one_line_that_names_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_command("tool", fail) == EXIT_UNFORESEEN
    (report,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert said.startswith("tool: unforeseen error: ZeroDivisionError: by nothing ")
    assert said.endswith(f"{report}\n")
    assert said.count("\n") == 1
    assert "Traceback (most recent call last)" in report.read_text()
    assert "raise ZeroDivisionError" in report.read_text()


def test_without_a_temporary_folder_the_traceback_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert run_command("tool", fail) == EXIT_UNFORESEEN
    assert capsys.readouterr().err.startswith("Traceback (most recent call last)")


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tool", lambda: len((tmp_path / "none").read_bytes())) == EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"tool: error: {tmp_path / 'none'}: No such file or directory; check the path\n")
    assert said.count("\n") == 1


PRINTS = "lambda: print('ü☃' * 100_000)"
PRINTS_A_TABLE = "lambda: print_tables(*['ü☃'] * 100_000)"


def shell(command: str, redirection: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command under bash; the last word of stdout is its exit code."""
    script = (
        "import asyncio, sys; from delta_common.command import run_command; "
        "from delta_common.console import print_tables; "
        f"sys.exit(run_command('tool', {command}))"
    )
    line = f'"{sys.executable}" -c "{script}" {redirection}; echo " ${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""} | variables
    )


@pytest.mark.parametrize("command", [PRINTS, PRINTS_A_TABLE])
def test_a_reader_that_had_enough_hears_nothing(command: str) -> None:
    done = shell(command, "| (head -c 2; sleep 0.01)")
    assert done.stdout.split() == ["ü", str(EXIT_NO_READER)]
    assert done.stderr == ""


@pytest.mark.parametrize("command", [PRINTS, PRINTS_A_TABLE, "lambda: print(1)"])
def test_output_on_a_full_disk_is_one_line(command: str) -> None:
    done = shell(command, "> /dev/full")
    assert done.stdout.split() == [str(EXIT_USAGE)]
    assert done.stderr.startswith("tool: error: No space left on device; ")
    assert done.stderr.count("\n") == 1


def test_tasks_that_an_error_leaves_behind_are_not_listed() -> None:
    left = "lambda loop: loop.create_task(asyncio.sleep(9)) and loop.run_until_complete(asyncio.sleep(0))"
    done = shell(f"lambda: ({left})(asyncio.new_event_loop())", "")
    assert (done.stdout.split(), done.stderr) == (["0"], "")


def test_output_that_is_closed_is_not_missed() -> None:
    done = shell("lambda: print(1) or print_tables('2') or print(3, file=sys.stderr)", ">&-")
    assert (done.stdout.split(), done.stderr) == (["0"], "3\n")
    done = shell("lambda: print(1) or print(3, file=sys.stderr)", "2>&-")
    assert (done.stdout.split(), done.stderr) == (["1", "0"], "")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_character_can_be_printed_in_any_encoding(variables: dict[str, str]) -> None:
    words = "'\\xfc\\udcff'"
    done = shell(f"lambda: print({words}) or print({words}, file=sys.stderr)", "", PYTHONCOERCECLOCALE="0", **variables)
    assert done.stdout.split() == ["\\xfc\\udcff", "0"]
    assert done.stderr == "\\xfc\\udcff\n"


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
