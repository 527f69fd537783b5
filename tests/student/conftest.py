"""A tiny cache and a finished run, shared by the tests of training and its results."""

from pathlib import Path

import pytest

from student.train.job import run_job
from student.train.processes import joined_processes, quiet_deepspeed
from student.train.summary import finish
from tests.helpers.small_training import make_uneven_cache, small_settings


@pytest.fixture(scope="session")
def uneven_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 rows of unequal numbers of valid positions; read it, do not write to it."""
    return make_uneven_cache(tmp_path_factory.mktemp("student") / "cache")


@pytest.fixture(scope="session")
def finished_run(uneven_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, measured on four rows of the cache trained on; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    settings = small_settings(f"--evaluation.cache={uneven_cache}", "--evaluation.max_rows=4")
    with quiet_deepspeed(), joined_processes() as processes:
        finish(run_job(settings, uneven_cache, folder, processes))
    return folder
