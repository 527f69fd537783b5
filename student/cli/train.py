"""The command line of `student-train`."""

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from delta_common.command import run_app
from delta_common.errors import UserError
from delta_common.settings_file import load_settings

if TYPE_CHECKING:
    from student.settings import TrainSettings
    from student.train.job import Outcome

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

app = App(name="student-train", help_format="markdown")

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


@app.default
def train(*overrides: Overrides, cache: str, config: Path | None = None, out: Path | None = None) -> int:
    """Train an xLSTM student from a cache of its teacher, by δ-distillation.

    Run the same command again after a stop: it continues from the newest checkpoint. To train with several
    processes, write `torchrun --nproc-per-node N -m student` in place of `student-train`.

    Every setting of the config file can also be given as `--section.key VALUE`, such as `--training.epochs 3
    --optimizer.learning-rate 1e-4 --evaluation.cache caches/held-out`.

    Parameters
    ----------
    cache
        Folder or URL of a cache that `teacher-cache build` wrote.
    config
        YAML file with the settings; configs/ has complete examples. Default: the paper's settings.
    out
        Local folder for checkpoints, metrics and the trained parameters. Default: `runs/NAME-OF-CACHE`.
    """
    from student.settings import TrainSettings

    if ":/" in str(out):
        raise UserError(f"--out {out}: checkpoints are written to a local folder; give a local path")
    settings = load_settings(TrainSettings, config, overrides)
    settings = settings.model_copy(update={"deepspeed": _beside(settings.deepspeed, config)})
    _run(settings, cache, out or Path("runs") / _name(cache))
    return 0


def main() -> None:
    """Entry point of the console script."""
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        from student.settings import settings_help

        lines = [f"- `{option}` [{default}] {words}" for option, default, words in settings_help()]
        app.help_epilogue = "Settings, and their defaults:\n" + "\n".join(lines)
    run_app(app)


def _run(settings: "TrainSettings", cache: str, out: Path) -> None:
    from student.train.processes import joined_processes, quiet_deepspeed

    with quiet_deepspeed():
        from student.train.job import run_job

        with joined_processes() as processes:
            try:
                outcome = run_job(settings, cache, out, processes)
                if processes.rank == 0:
                    _finish(outcome)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                where = error.filename or out
                remedy = "make room or give another --out, then run the same command again"
                raise UserError(f"{where}: cannot be written ({error.strerror}); {remedy}") from error


def _name(cache: str) -> str:
    """The last part of a path or URL."""
    return cache.rstrip("/").rpartition("/")[2] if "://" in cache else Path(cache).resolve().name


def _beside(deepspeed: Path | None, config: Path | None) -> Path | None:
    """The DeepSpeed JSON beside the settings file if it is there, else as the current folder sees it."""
    if deepspeed is None or config is None or not (config.parent / deepspeed).is_file():
        return deepspeed
    return config.parent / deepspeed


def _finish(outcome: "Outcome") -> None:
    from student.train.summary import finish

    finish(outcome)
