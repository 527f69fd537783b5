"""student-train as a user meets it: resume to the bit, two processes like one, dense cache like the teacher online."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delta_common.errors import UserError
from student.cli import train as train_cli
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.loss.naive import dense_distillation_loss, total_loss
from student.loss.schedule import Coefficients
from student.run.checkpoints import find_checkpoint
from student.settings import TrainSettings
from student.train import loop
from student.train.assemble import assemble
from student.train.job import run_job
from student.train.processes import Processes
from teacher_cache.build.job import build as build_cache
from teacher_cache.build.synthetic import SyntheticSettings, SyntheticTeacher, make_synthetic_cache
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from tests.helpers import ROOT
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.small_training import (
    ROWS,
    SMALL,
    VOCAB,
    WIDTH,
    make_uneven_cache,
    small_settings,
    stop_at,
    trace,
    weights,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_uneven_cache(tmp_path_factory.mktemp("train") / "cache")


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("fp32", 2), ("fp32", 3), ("bf16", 0), ("bf16", 1)])
def test_stopped_and_continued_is_never_stopped_to_the_bit(
    cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int
) -> None:
    deepspeed = {"zero_optimization": {"stage": stage}}
    wanted = small_settings("--training.precision", precision, deepspeed=deepspeed, folder=tmp_path)
    run_job(wanted, cache, tmp_path / "whole", alone)
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            run_job(wanted, cache, tmp_path / "stopped", alone)
    outcome = run_job(wanted, cache, tmp_path / "stopped", alone)
    assert outcome.resumed_at == 4
    assert [record["step"] for record in trace(tmp_path / "stopped")] == [1, 2, 3, 4, 5, 6]
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    kept = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").glob("step_*"))
    assert kept == ["step_00000004", "step_00000006"]


KINDS: dict[str, dict[str, Any]] = {
    "sampled": {"samples": 20},
    "exact": {"mode": "exact"},
    "exact, int8": {"mode": "exact", "exact_hidden": "int8"},
    "int8 states at every 4th position": {"hidden": "int8", "hidden_stride": 4},
}


def make_cache(path: Path, kind: str) -> Path:
    sizes = {"rows": ROWS, "seq_len": 12, "vocab_size": VOCAB, "top_k": 8, "hidden_size": WIDTH, "rows_per_shard": 8}
    return make_synthetic_cache(path, **sizes, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_trains(alone: Processes, tmp_path: Path, kind: str) -> None:
    cache = make_cache(tmp_path / "cache", kind)
    outcome = run_job(small_settings("--evaluation.cache", str(cache)), cache, tmp_path / "out", alone)
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after.cross_entropy < outcome.before.cross_entropy
    assert outcome.after.kl < outcome.before.kl
    records = trace(tmp_path / "out")
    assert len(records) == 6
    assert all(np.isfinite(list(record.values())).all() and record["frobenius"] > 0 for record in records)


def test_a_view_of_sampled_targets_is_resumed_to_the_bit_and_compared(
    alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path / "cache", "sampled")
    view = ["--targets.top_k=4", "--targets.samples=10", "--distillation.frobenius.channels=normalised"]
    run_job(small_settings(), cache, tmp_path / "all", alone)
    run_job(small_settings(*view), cache, tmp_path / "whole", alone)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run_job(small_settings(*view), cache, tmp_path / "stopped", alone)
    assert run_job(small_settings(*view), cache, tmp_path / "stopped", alone).resumed_at == 2
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole") != trace(tmp_path / "all")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    message = refused(small_settings(*view, "--targets.samples=9"), cache, tmp_path / "whole", alone)
    assert "targets.samples 10, now 9" in message


def test_training_lowers_held_out_numbers_and_a_finished_run_is_not_run_again(
    cache: Path, alone: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = small_settings("--evaluation.cache", str(cache), "--training.max_steps", "16", "--evaluation.every", "8")
    outcome = run_job(wanted, cache, tmp_path, alone)
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after.cross_entropy < outcome.before.cross_entropy - 0.2
    assert outcome.after.kl < outcome.before.kl
    assert outcome.before.perplexity == pytest.approx(np.exp(outcome.before.cross_entropy))
    first_weights, first_trace = weights(tmp_path), trace(tmp_path)
    again = run_job(wanted, cache, tmp_path, alone)
    assert (again.resumed_at, again.before, again.after) == (16, outcome.before, outcome.after)
    assert (weights(tmp_path), trace(tmp_path)) == (first_weights, first_trace)
    assert "continuing after step 16 of 16" in capsys.readouterr().err


def test_two_processes_train_to_the_trace_of_one(cache: Path, alone: Processes, tmp_path: Path) -> None:
    one = ["--training.gradient_accumulation=4", "--training.max_steps=5", f"--evaluation.cache={cache}"]
    one.append("--evaluation.max_rows=27")
    two = ["--training.gradient_accumulation=2", *one[1:]]
    wanted = small_settings(*one, deepspeed={"zero_optimization": {"stage": 0}}, folder=tmp_path)
    expected = run_job(wanted, cache, tmp_path / "one", alone)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "student"]
    options = ["--cache", str(cache), "--out", str(tmp_path / "two"), "--deepspeed", str(wanted.deepspeed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("LOCAL_RANK", None)
    done = subprocess.run(
        [*launch, *options, *SMALL, *two], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    for ours, theirs in zip(trace(tmp_path / "two"), trace(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    found = json.loads((tmp_path / "two" / "evaluation.jsonl").read_text().splitlines()[-1])
    assert expected.after is not None
    assert found["kl"] == pytest.approx(expected.after.kl, rel=1e-5)
    assert found["tokens"] == expected.after.tokens


def refused(wanted: TrainSettings, cache: Path, out: Path, alone: Processes) -> str:
    with pytest.raises(UserError) as error:
        run_job(wanted, cache, out, alone)
    return str(error.value)


def test_a_checkpoint_of_another_run_is_refused_and_kept(cache: Path, alone: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(small_settings(), cache, out, alone)
    before = weights(out), trace(out)
    other = tmp_path / "other"
    make_synthetic_cache(other, rows=8, seq_len=12, vocab_size=VOCAB, top_k=8, hidden_size=WIDTH, rows_per_shard=8)
    message = refused(small_settings(), other, out, alone)
    assert "a checkpoint of another cache" in message
    assert "--out" in message
    message = refused(small_settings("--training.seed", "7"), cache, out, alone)
    assert "training.seed 42, now 7; set it back or give another --out" in message
    message = refused(small_settings("--training.micro-batch-size", "4"), cache, out, alone)
    assert "training.global_batch 4, now 8" in message
    assert (weights(out), trace(out)) == before
    same_batch = small_settings("--training.micro-batch-size", "4", "--training.gradient-accumulation", "1")
    assert run_job(same_batch, cache, out, alone).resumed_at == 6


def test_a_damaged_checkpoint_names_the_way_back(cache: Path, alone: Processes, tmp_path: Path) -> None:
    run_job(small_settings(), cache, tmp_path, alone)
    found = find_checkpoint(tmp_path)
    assert found is not None
    file = found[0] / "states.safetensors"
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:-100])
    remedy = f"remove {found[0]} to continue from the checkpoint before it"
    assert remedy in refused(small_settings(), cache, tmp_path, alone)
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(data)
    assert remedy in refused(small_settings(), cache, tmp_path, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainign.epochs", "3"], "did you mean --training.epochs"),
        (["--training.epochs", "0"], "training.epochs"),
        (["--model.heads", "5"], "--model.heads 5"),
        (["--targets.top_k", "9"], "targets.top_k 9: the cache holds 8; choose 1 to 8"),
        (["--targets.samples", "-1"], "targets.samples"),
        (["--distillation.temperature_init", "3"], "temperature_init: temperature 3 is outside the cached range 1 to"),
        (["--distillation.temperature_final", "0.9"], "temperature_final: temperature 0.9 is outside the cached range"),
        (["--evaluation.cache", "nowhere"], "nowhere: no such folder"),
        (["--deepspeed", "nowhere.json"], "nowhere.json: no such file"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: cannot be made"),
        (["--training.micro_batch_size", "20"], "32 rows, fewer than one global batch of 40"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["student-train", "--cache", str(cache), *out, *SMALL, *options])
    with pytest.raises(SystemExit) as stop:
        train_cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("student-train: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_help_shows_every_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["student-train", "--help"])
    with pytest.raises(SystemExit) as stop:
        train_cli.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--cache", "--training.epochs [10]", "--distillation.frobenius.norm [sequence]", "--deepspeed"):
        assert option in shown


def test_a_frobenius_term_needs_hidden_states(alone: Processes, tmp_path: Path) -> None:
    bare = make_synthetic_cache(
        tmp_path / "bare", rows=8, seq_len=4, vocab_size=VOCAB, top_k=8, hidden_size=WIDTH, hidden="none"
    )
    assert "no averaged hidden states" in refused(small_settings(), bare, tmp_path / "out", alone)
    off = ["--distillation.frobenius.weight_init", "0", "--distillation.frobenius.weight_final", "0"]
    run_job(small_settings(*off), bare, tmp_path / "out", alone)
    assert {record["frobenius"] for record in trace(tmp_path / "out")} == {0.0}


def test_monitors_of_the_deepspeed_json_get_every_number(cache: Path, alone: Processes, tmp_path: Path) -> None:
    json_file = ROOT / "configs" / "deepspeed" / "zero0_monitors.json"
    wanted = small_settings().model_copy(update={"deepspeed": json_file})
    run_job(wanted, cache, tmp_path, alone)
    written = (tmp_path / "monitor" / "csv" / "train_kl.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in written] == ["step", "1", "2", "3", "4", "5", "6"]
    assert float(written[3].split(",")[1]) == trace(tmp_path)[2]["kl"]
    assert list((tmp_path / "monitor" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0])
def test_a_dense_cache_reproduces_the_teacher_online(alone: Processes, tmp_path: Path, temperature: float) -> None:
    """Loss and every trained parameter's gradient, relative 1e-5 in float32."""
    sizes = SyntheticSettings(
        rows=8, seq_len=12, vocab_size=VOCAB, top_k=VOCAB, hidden_size=WIDTH, value_dtype="float32", dtype="float32"
    )
    dense = open_cache(make_synthetic_cache(tmp_path / "dense", **vars(sizes)))
    run = assemble(small_settings(), dense, tmp_path / "out", alone)
    coefficients = Coefficients(alpha=0.7, temperature=temperature, beta=0.1)
    batch = Batch.of(dense.rows(range(4)), dense, alone.device)
    offline = loop.loss_of(run, batch, run.student(batch.inputs), coefficients, GlobalCounts(48, 4))
    teacher = SyntheticTeacher(sizes)
    before = torch.cat([torch.zeros(4, 1, dtype=torch.int64), batch.inputs[:, :-1]], dim=1)
    logits = teacher.logits(teacher.states(batch.inputs.flatten(), before.flatten())).view(4, 12, VOCAB)
    online = dense_distillation_loss(
        run.student(batch.inputs),
        run.student.head,
        batch,
        logits,
        temperature=temperature,
        frobenius=run.frobenius[0],
    )
    assert offline.sums.kl.item() == pytest.approx(online.kl.item(), rel=1e-5)
    assert offline.sums.cross_entropy.item() == pytest.approx(online.cross_entropy.item(), rel=1e-5)
    parameters = dict(run.student.named_parameters())
    losses = [offline.total, total_loss(online, coefficients, GlobalCounts(48, 4))]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, list(parameters.values())) for loss in losses]
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-5 * torch.linalg.vector_norm(theirs), name


def test_a_process_without_valid_positions_still_takes_part(cache: Path, alone: Processes, tmp_path: Path) -> None:
    off = ["--distillation.frobenius.weight_init", "0", "--distillation.frobenius.weight_final", "0"]
    run = assemble(small_settings(*off), open_cache(cache), tmp_path, alone)
    rows = run.reader.read(0)
    rows.loss_mask[:2] = False
    batch = StepBatch.of([rows], 2, [run.cache])
    metrics = loop.take_step(run, batch, [Coefficients(alpha=0.5, temperature=1.5, beta=0.0)], step=0, epoch=0)
    assert metrics.tokens == rows.loss_mask.sum()
    assert np.isfinite(metrics.loss)


def test_where_the_teacher_saw_a_document_only_the_student_does_too(
    alone: Processes, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The student's states behind a start are those of the document by itself, in training as it is called there."""
    build = {
        "teacher": {"model": str(tiny_teacher)},
        "corpus": {"source": str(write_text_corpus(tmp_path, words=6))},
        "rows": {"seq_len": 32, "count": 8, "context": "document"},
        "targets": {"top_k": 4, "samples": 8},
    }
    build_cache(BuildSettings.model_validate(build), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    run = assemble(small_settings(), cache, tmp_path / "run", alone)
    batch = Batch.of(cache.rows(range(8)), cache, alone.device)
    assert batch.document_start is not None
    behind = [(row, at) for row, at in batch.document_start.nonzero().tolist() if at > 0]
    assert len(behind) >= 5
    with torch.no_grad():
        states = run.engine(batch.inputs, batch.document_start)
        for row, at in behind:
            stop = next((a for r, a in behind if r == row and a > at), 32)
            by_itself = run.engine(batch.inputs[row : row + 1, at:stop])[0]
            assert (states[row, at:stop] - by_itself).abs().max() < 1e-5
        joined = run.engine(batch.inputs)
        assert (states - joined).abs().max() > 1e-3
    run_job(small_settings("--training.max_steps=2"), tmp_path / "cache", tmp_path / "job", alone)
    assert [line["step"] for line in trace(tmp_path / "job")] == [1, 2]
