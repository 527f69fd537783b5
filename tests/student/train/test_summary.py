"""What a finished job writes and prints."""

import json
from pathlib import Path

import pytest

from student.train.job import run_job
from student.train.processes import Processes
from student.train.summary import finish
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import small_settings


def test_the_summary_says_what_the_run_came_to(finished_run: Path, uneven_cache: Path) -> None:
    summary, cache = json.loads((finished_run / "summary.json").read_text()), open_cache(uneven_cache)
    assert summary["cache"] == str(uneven_cache.resolve())
    assert summary["cache_fingerprint"] == cache.fingerprint
    assert summary["teacher_weights_sha256"] == cache.manifest.teacher.weights_sha256
    assert summary["steps"] == 6
    assert 0 < summary["trainable_parameters"] < summary["total_parameters"]
    assert summary["teacher_measures"].keys() <= {"cross_entropy", "perplexity", "accuracy", "calibration_error"}
    assert (finished_run / "report.html").read_text().startswith("<!doctype html>")


def test_it_prints_numbers_before_and_after_and_where_files_are(
    uneven_cache: Path, alone: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings(f"--evaluation.cache={uneven_cache}", "--evaluation.max_rows=4")
    outcome = run_job(settings, uneven_cache, tmp_path / "run", alone)
    finish(outcome)
    printed = capsys.readouterr().out
    assert outcome.before is not None
    assert outcome.after is not None
    for words in (
        f"{outcome.before.cross_entropy:.4f}",
        f"{outcome.after.kl:.4f}",
        "after 6 steps",
        "waiting for data",
    ):
        assert words in printed
    assert str(tmp_path / "run" / "trained.safetensors") in printed
