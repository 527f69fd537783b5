"""`student-export`: parse, call, print, exit code."""

import sys
from pathlib import Path

from cyclopts import App, CycloptsError

from delta_common.errors import UserError, run_command

app = App(name="student-export")


@app.default
def export(run: Path, *, out: Path, cache: str | None = None) -> int:
    """Write a finished run's student as a model for transformers, with its tokenizer and a model card.

    Load it with `AutoModelForCausalLM.from_pretrained(OUT)` after `import student.transformers`, or write text
    with student-generate.

    Parameters
    ----------
    run
        Folder of a finished student-train.
    out
        Folder for the model; must be new, empty, or an earlier export, which is replaced.
    cache
        Folder or URL of the cache trained on, if it is no longer where it was.
    """
    from delta_common.progress import byte_size
    from student.export.write import export_student

    size = export_student(run, out, cache)
    print(f"{out}: {byte_size(size)}")
    return 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command("student-export", _call))


def _call() -> int | None:
    try:
        result: int | None = app(sys.argv[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UserError(f"{error} (see student-export --help)") from error
    return result
