"""The command line of `student-train`."""

import errno
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from delta_common.command import LOCAL_PATH, run_app
from delta_common.errors import UserError
from delta_common.files import expand_home
from delta_common.settings_file import as_yaml, help_epilogue, load_settings

if TYPE_CHECKING:
    from student.settings import TrainSettings
    from student.train.job import Outcome

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

app = App(name="student-train", help_format="markdown")

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


@app.default
def train(
    *overrides: Overrides,
    cache: list[str] | None = None,
    config: Annotated[Path | None, LOCAL_PATH] = None,
    out: Annotated[Path | None, LOCAL_PATH] = None,
    init_from: Annotated[Path | None, LOCAL_PATH] = None,
    show_config: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a student from a cache of its teacher, by δ-distillation.

    Run the same command again after a stop: it continues from the newest checkpoint. To train with several
    processes, write `torchrun --nproc-per-node N -m student` in place of `student-train`.

    Every setting of the config file can also be given as `--section.key VALUE`, such as `--training.epochs 3
    --optimizer.learning-rate 1e-4 --evaluation.cache caches/held-out`.

    Parameters
    ----------
    cache
        Folder or URL of a cache that `teacher-cache build` wrote. To train on several, give `--cache PATH=SHARE` for
        each, the share being that of its rows; without shares every row is read as often.
    config
        YAML file with the settings; configs/ has complete examples. Default: the paper's settings.
    out
        Local folder for checkpoints, metrics and the trained parameters. Default: `runs/NAME-OF-CACHE`, the names of
        several joined by `+`.
    init_from
        Folder of another run, or of an export, of the same teacher and shape: begin with its parameters.
    show_config
        Print all settings in force as YAML, and train nothing.
    """
    from student.settings import TrainSettings

    given = [_path_and_share(words) for words in cache or ()]
    if len(given) > 1:  # As an option among the others, so that `--caches.1.distillation…` may follow.
        overrides = (f"--caches={json.dumps([{'path': path, 'share': share} for path, share in given])}", *overrides)
    settings = load_settings(TrainSettings, config, overrides)
    if show_config:
        print(as_yaml(settings))
        return 0
    paths = [path for path, _ in given] or [each.path for each in settings.caches]
    if not paths:
        raise UserError("--cache is missing; give the folder or URL of a cache")
    if ":/" in str(out):
        raise UserError(f"--out {out}: checkpoints are written to a local folder; give a local path")
    settings = settings.model_copy(update={"deepspeed": _beside(settings.deepspeed, config)})
    alone = paths[0] if len(given) == 1 else None
    _run(settings, alone, out or Path("runs") / "+".join(map(_name, paths)), init_from)
    return 0


def main() -> None:
    """Entry point of the console script."""
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        from student.settings import TrainSettings

        app.help_epilogue = help_epilogue(TrainSettings)
    run_app(app)


def _path_and_share(words: str) -> tuple[str, float | None]:
    """The two parts of PATH=SHARE; a path alone has no share."""
    path, equals, share = words.rpartition("=")
    try:
        number = float(share)
    except ValueError:
        return words, None
    if not equals or Path(words).exists():
        return words, None
    if not 0 < number < math.inf:
        raise UserError(
            f"--cache {words}: the share must be above 0; give --cache {path}=SHARE, or leave this cache out"
        )
    return path, number


def _run(settings: "TrainSettings", cache: str | None, out: Path, init_from: Path | None) -> None:
    from student.train.processes import joined_processes, quiet_deepspeed

    with quiet_deepspeed():
        from student.train.job import run_job

        with joined_processes() as processes:
            try:
                outcome = run_job(settings, cache, out, processes, init_from)
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
    return cache.rstrip("/").rpartition("/")[2] if "://" in cache else expand_home(cache).resolve().name


def _beside(deepspeed: Path | None, config: Path | None) -> Path | None:
    """The DeepSpeed JSON beside the settings file if it is there, else as the current folder sees it."""
    if deepspeed is None:
        return None
    deepspeed = expand_home(deepspeed)
    return config.parent / deepspeed if config is not None and (config.parent / deepspeed).is_file() else deepspeed


def _finish(outcome: "Outcome") -> None:
    from student.train.summary import finish

    finish(outcome)
