"""`student-report`: parse, call, print, exit code."""

from pathlib import Path

from cyclopts import App

from delta_common.command import run_app
from delta_common.errors import UserError

MOST_RUNS = 18
"""Six colours in three kinds of dashes."""

app = App(name="student-report")


@app.default
def report(*runs: Path, out: Path | None = None) -> int:
    """Draw training runs as one HTML page, several on the same charts; they need not have finished.

    Parameters
    ----------
    runs
        Folders of student-train.
    out
        The page; `report.html` in a single run's folder, or in the current one for several, if not given.
    """
    from delta_common.progress import byte_size
    from student.report.page import REPORT_FILE, write_report
    from student.run.files import read_run

    if not runs:
        raise UserError("no run is given; name the folders of one or more, such as student-report runs/a runs/b")
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: a chart tells {MOST_RUNS} apart at most; leave some out")
    path = out or (runs[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    size = write_report([read_run(run) for run in runs], path)
    print(f"{path}: {byte_size(size)}")
    return 0


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
