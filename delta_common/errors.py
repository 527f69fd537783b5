"""The one error family a user can cause; command lines print it as one line and exit with 2."""

import sys
from collections.abc import Callable

EXIT_USAGE = 2


class UserError(ValueError):
    """Something the user can remedy. The message names the option or file, the value, and what to do."""


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run a command; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        return command() or 0
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{program}: stopped; run the same command again to continue", file=sys.stderr)
        return 130
