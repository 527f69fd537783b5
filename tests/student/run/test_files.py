"""A run's folder as it is read again: finished, unfinished, and damaged in each of its files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.run.files import read_run, read_settings, read_summary


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_finished_run_is_read_whole(finished_run: Path) -> None:
    run = read_run(finished_run)
    assert [record["step"] for record in run.metrics] == [cost.step for cost in run.costs] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in run.evaluations] == [0, 6]
    assert run.plan is not None
    assert run.summary is not None
    assert run.plan.total_steps == run.summary.steps == 6
    assert run.settings.evaluation.max_rows == 4
    assert run.summary.samples == []


def test_an_unfinished_run_has_no_summary(copy: Path) -> None:
    for name in ("summary.json", "plan.json", "evaluation.jsonl", "costs.jsonl"):
        (copy / name).unlink()
    run = read_run(copy)
    assert (run.summary, run.plan, run.evaluations, run.costs) == (None, None, [], [])
    with pytest.raises(UserError, match="the run has not finished; run its student-train command again to its end"):
        read_summary(copy)


def test_a_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training run here; give the --out folder of student-train"):
        read_settings(tmp_path)


DAMAGE: dict[str, tuple[str, str]] = {
    "settings.json": ("{}}", "settings.json: not what student-train writes there"),
    "summary.json": ('{"cache": 3}', "summary.json: not what student-train writes there"),
    "plan.json": ("[]", "plan.json: not what student-train writes there"),
    "metrics.jsonl": ("{\n", r"metrics.jsonl: not readable as lines of JSON \("),
    "evaluation.jsonl": ("[1]\n", "evaluation.jsonl: not readable as lines of JSON objects"),
    "costs.jsonl": ('{"step": 1}\n', "costs.jsonl: not what student-train writes there"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(copy: Path, name: str) -> None:
    content, words = DAMAGE[name]
    (copy / name).write_text(content)
    read: Callable[[Path], object] = read_run
    with pytest.raises(UserError, match=words):
        read(copy)


@pytest.mark.parametrize("absurd", ["[" * 100_000, "9" * 5_000, "9" * 4_000])
@pytest.mark.parametrize("name", DAMAGE)
def test_absurd_json_is_named(copy: Path, name: str, absurd: str) -> None:
    (copy / name).write_text('{"step": ' + absurd + "}\n")
    with pytest.raises(UserError, match=rf"{name}: not "):
        read_run(copy)
