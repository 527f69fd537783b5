"""The command line of `student-export`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App

from delta_common.command import LOCAL_PATH, run_app

app = App(name="student-export")


@app.default
def export(run: Annotated[Path, LOCAL_PATH], *, out: Annotated[Path, LOCAL_PATH], cache: str | None = None) -> int:
    """Write a finished run's student as a model for transformers, with its tokenizer and a model card.

    Load it with `AutoModelForCausalLM.from_pretrained(OUT)` after `import student.transformers`, or write text
    with student-generate.

    Parameters
    ----------
    run
        Folder of a finished student-train run.
    out
        Folder to write the model to. It must be new or empty, or hold an earlier export, which is replaced.
    cache
        Folder or URL of the cache trained on, if it has moved since.
    """
    from delta_common.progress import byte_size
    from student.export.write import export_student

    size = export_student(run, out, cache)
    print(f"{out}: {byte_size(size)}")
    return 0


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
