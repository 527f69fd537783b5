"""What every command line of this project does around its work: parse, run, print an error in one line, exit."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from delta_common.errors import UserError

if TYPE_CHECKING:
    from cyclopts import App

EXIT_USAGE = 2
EXIT_STOPPED = 130


def run_app(app: "App") -> None:
    """Run an application on the words of the command line and exit; words it cannot parse are a `UserError`."""
    sys.exit(run_command(app.name[0], lambda: _parse_and_call(app)))


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code; None counts as 0.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{program}: stopped; run the same command again to continue", file=sys.stderr)
        return EXIT_STOPPED


def _parse_and_call(app: "App") -> int | None:
    from cyclopts import CycloptsError

    try:
        result: int | None = app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UserError(f"{error} (see {app.name[0]} --help)") from error
    return result
