"""A job from start to end: what it leaves, and what a second call does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from delta_common.errors import UserError
from student.data import order
from student.data.batch import Batch
from student.data.order import ShuffleSizes
from student.loss.distillation import distillation_loss
from student.model.frozen import FrozenHead
from student.run.files import TRAINED_FILE
from student.train import job, loop
from student.train.job import run_job
from student.train.processes import Processes
from tests.helpers.small_training import newest, small_settings, stop_at, trace, weights


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


def test_a_run_begun_with_other_windows_keeps_its_order(
    uneven_cache: Path,
    alone: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An earlier version did not say how many shards its windows had: it was always four, and there were no pools."""
    with monkeypatch.context() as patch:
        patch.setattr(order, "shuffle_sizes", lambda *_: ShuffleSizes(4, 4))
        run_job(small_settings(), uneven_cache, tmp_path / "whole", alone)
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            run_job(small_settings(), uneven_cache, tmp_path / "stopped", alone)
    state = newest(tmp_path / "stopped") / "state.json"
    written = json.loads(state.read_text())
    assert (written.pop("window_shards"), written.pop("pool_shards")) == (4, 4)
    state.write_text(json.dumps(written))
    monkeypatch.setattr(order, "WINDOW_BYTES", 1)
    monkeypatch.setattr(order, "POOL_BYTES", 1)
    run_job(small_settings(), uneven_cache, tmp_path / "stopped", alone)
    assert "rows are permuted together" not in capsys.readouterr().err
    run_job(small_settings(), uneven_cache, tmp_path / "other", alone)
    assert f"{uneven_cache}: 8 rows are permuted together, 2 steps' worth" in capsys.readouterr().err
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    assert trace(tmp_path / "other") != trace(tmp_path / "whole")
    assert json.loads((newest(tmp_path / "other") / "state.json").read_text())["window_shards"] == 1


def test_held_out_numbers_are_those_before_and_after(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    settings = small_settings(f"--evaluation.cache={uneven_cache}", "--evaluation.max_rows=4")
    outcome = run_job(settings, uneven_cache, tmp_path / "run", alone)
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after.cross_entropy < outcome.before.cross_entropy
    assert [record["step"] for record in outcome.run.measurements.read()] == [0, 6]


def on_targets_of_nan(hidden_states: Tensor, head: FrozenHead, batch: Batch, *more: Any, **options: Any) -> Any:
    assert batch.targets.values is not None
    nan = replace(batch.targets, values=torch.full_like(batch.targets.values, torch.nan))
    return distillation_loss(hidden_states, head, replace(batch, targets=nan), *more, **options)


def test_targets_that_are_not_finite_leave_no_trained_student(
    uneven_cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, out = small_settings("--training.max_steps=3"), tmp_path / "run"
    monkeypatch.setattr(loop, "distillation_loss", on_targets_of_nan)
    for words in ("for 3 steps, nor has KL; .* verify --deep", "for 3 steps; its checkpoints"):
        with pytest.raises(UserError, match=words):
            run_job(settings, uneven_cache, out, alone)
        assert not (out / TRAINED_FILE).exists()


def test_a_file_is_no_folder(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; give a folder"):
        run_job(small_settings(), uneven_cache, tmp_path / "file", alone)


def test_a_border_needs_a_folder_that_this_process_sees(
    uneven_cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host whose disk is not that of the first process."""
    monkeypatch.setattr(job, "find_checkpoint", lambda out: None)
    with pytest.raises(UserError, match="its checkpoints are not seen from here; give a folder that all hosts share"):
        run_job(small_settings("--stages=[{steps: 1}, {steps: 1}]"), uneven_cache, tmp_path / "run", alone)


def test_a_block_stack_has_stages_too(uneven_cache: Path, alone: Processes, tmp_path: Path) -> None:
    """Each with its own learning rate and loss; one alone is the run without any."""
    run_job(small_settings("--training.max_steps=4"), uneven_cache, tmp_path / "plain", alone)
    run_job(small_settings("--stages=[{steps: 4}]"), uneven_cache, tmp_path / "one", alone)
    assert (trace(tmp_path / "one"), weights(tmp_path / "one")) == (
        trace(tmp_path / "plain"),
        weights(tmp_path / "plain"),
    )
    two = "--stages=[{steps: 2, learning_rate: 0.5}, {steps: 2, distillation: {alpha_init: 0.7}}]"
    run_job(small_settings(two), uneven_cache, tmp_path / "two", alone)
    found = trace(tmp_path / "two")
    assert [line["learning_rate"] for line in found] == pytest.approx([0.25, 0.5, 5e-3, 1e-2])
    assert [line["alpha"] for line in found][::2] == [0.8, 0.7]


def test_it_begins_without_what_takes_seconds_to_import() -> None:
    """Students of transformers bring it themselves, and training compiled brings the compiler."""
    heavy = {"transformers", "torch._dynamo", "torch._inductor"}
    code = f"import sys, deepspeed, student.train.job; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
