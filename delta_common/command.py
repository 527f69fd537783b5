"""What every command line of this project does around its work: parse, run, print an error in one line, exit."""

import errno
import io
import logging
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter, Token

from delta_common.errors import REMEDIES, UserError
from delta_common.files import expand_home

EXIT_USAGE = 2
EXIT_UNFORESEEN = 70
EXIT_STOPPED = 130
EXIT_NO_READER = 141


def _local_path(_: object, tokens: Sequence[Token]) -> Path:
    return expand_home(tokens[0].value)


LOCAL_PATH = Parameter(converter=_local_path)
"""Of a path on the command line: `~` is the home folder also where no shell says so, as in `--out=~/x`."""


def run_app(app: App) -> None:
    """Run an application on the words of the command line and exit; words it cannot parse are a `UserError`."""
    sys.exit(run_command(app.name[0], lambda: _parse_and_call(app)))


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; None counts as 0. No traceback reaches the user.

    A `UserError`, or a file that cannot be read or written, becomes one line on stderr and exit code 2. Ctrl-C gives
    exit code 130, and a closed pipe on stdout (`… | head`) 141, without a word. Any other error is one line that names
    a file with the traceback, and exit code 70.
    """
    _open_missing_streams()
    _print_any_character()
    # Zarr reads in tasks: after an error in one, which is reported, asyncio would list the others at the end.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(program, f"error: {error}", EXIT_USAGE)
    except KeyboardInterrupt:
        return _say(program, "stopped; run the same command again to continue", EXIT_STOPPED)
    except OSError as error:
        return _failed_system_call(program, error)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # how rich reports a closed pipe
            return EXIT_NO_READER
        raise
    except Exception as error:
        return _unforeseen(program, error)


def _parse_and_call(app: App) -> int | None:
    try:
        result: int | None = app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UserError(f"{error} (see {app.name[0]} --help)") from error
    return result


def _open_missing_streams() -> None:
    """Let a closed stdin, stdout or stderr (`>&-`) lead nowhere, before another file gets its number."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _print_any_character() -> None:
    """Print characters that the terminal's encoding lacks as `\\xfc`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(program: str, message: str, code: int) -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _failed_system_call(program: str, error: OSError) -> int:
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        _discard_output()
        return EXIT_NO_READER
    if error.filename is not None:
        remedy = REMEDIES.get(error.errno or 0, "check the path and its disk")
        return _say(program, f"error: {error.filename}: {error.strerror}; {remedy}", EXIT_USAGE)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        _discard_output()
        remedy = "free space, also where standard output goes, and run the same command again"
        return _say(program, f"error: {error.strerror}; {remedy}", EXIT_USAGE)
    return _unforeseen(program, error)


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Give up what is not printed yet, so that Python does not try to print it again on its way out."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _unforeseen(program: str, error: Exception) -> int:
    said = f"unforeseen error: {''.join(traceback.format_exception_only(error))}"
    report = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f"{program}-", suffix=".txt", delete=False) as file:
            file.write(report)
    except OSError:
        print(report, file=sys.stderr)
        return _say(program, f"{said}; please report it with the lines above", EXIT_UNFORESEEN)
    return _say(program, f"{said}; please report it with the traceback in {file.name}", EXIT_UNFORESEEN)
