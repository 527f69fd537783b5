"""A job from start to end: what it leaves, and what a second call does."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.train.job import run_job
from student.train.processes import Processes
from tests.helpers.small_training import small_settings, trace, weights


def test_it_leaves_its_files_and_a_second_call_changes_nothing(
    uneven_cache: Path, alone: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, out = small_settings("--training.max_steps=3"), tmp_path / "run"
    first = run_job(settings, uneven_cache, out, alone)
    assert (first.resumed_at, first.before, first.after) == (0, None, None)
    assert first.waiting is not None
    assert 0 <= first.waiting <= 1
    names = {path.name for path in out.iterdir()}
    assert names >= {"settings.json", "plan.json", "checkpoints", "metrics.jsonl", "costs.jsonl", "trained.safetensors"}
    before = (trace(out), weights(out))
    capsys.readouterr()
    second = run_job(settings, uneven_cache, out, alone)
    assert (second.resumed_at, second.waiting) == (3, None)
    assert (trace(out), weights(out)) == before
    assert f"{out}: continuing after step 3 of 3" in capsys.readouterr().err


def test_held_out_numbers_are_those_before_and_after(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    settings = small_settings(f"--evaluation.cache={uneven_cache}", "--evaluation.max_rows=4")
    outcome = run_job(settings, uneven_cache, tmp_path / "run", alone)
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after.cross_entropy < outcome.before.cross_entropy
    assert [record["step"] for record in outcome.run.measurements.read()] == [0, 6]


def test_a_file_is_no_folder(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; give a folder"):
        run_job(small_settings(), uneven_cache, tmp_path / "file", alone)
