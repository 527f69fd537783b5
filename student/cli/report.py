"""The command line of `student-report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App

from delta_common.command import LOCAL_PATH, run_app
from delta_common.errors import UserError

MOST_RUNS = 18
"""Six colours in three kinds of dashes tell this many curves apart."""

app = App(name="student-report")


@app.default
def report(*runs: Annotated[Path, LOCAL_PATH], out: Annotated[Path | None, LOCAL_PATH] = None) -> int:
    """Draw training runs as one HTML page, several runs on the same charts. Runs may still be going on.

    Parameters
    ----------
    runs
        Folders of student-train runs.
    out
        File to write. Default: `report.html`, in the run's folder for one run, in the current folder for several.
    """
    from delta_common.progress import byte_size
    from student.report.page import REPORT_FILE, write_report
    from student.run.files import read_run

    if not runs:
        raise UserError("no run is given; name one or more folders, such as student-report runs/a runs/b")
    if len(runs) > MOST_RUNS:
        raise UserError(f"{len(runs)} runs: a chart can show at most {MOST_RUNS}; leave some out")
    path = out or (runs[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    size = write_report([read_run(run) for run in runs], path)
    print(f"{path}: {byte_size(size)}")
    return 0


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
