"""Training on several caches: each row counts as its own cache says, and runs continue to the bit in any number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delta_common.errors import UserError
from student.cli.train import app
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.loss.naive import distillation_loss_sums, total_loss
from student.run.checkpoints import Progress
from student.run.files import read_provenance, read_run, read_settings
from student.train import loop
from student.train.assemble import assemble
from student.train.job import run_job
from student.train.processes import Processes
from student.train.summary import finish
from teacher_cache.read.cache import open_cache
from tests.helpers.several_caches import SHARES, make_caches, named
from tests.helpers.several_jobs import launch, stage_file
from tests.helpers.small_training import newest, small_settings, stop_at, trace, weights

ROUNDING = 1e-5
OWN = {"sampled": {"distillation": {"alpha_init": 0.7, "temperature_init": 1.5, "frobenius": {"weight_init": 0.3}}}}
LONG = ("--training.max_steps=14", "--training.epochs=2", "--training.checkpoint_every=3")
"""An epoch is 10 steps of 4 rows; the smallest cache begins its second pass in step 11."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_caches(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def two_processes(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes, started once, have left."""
    folder = tmp_path_factory.mktemp("two")
    split = ["--training.micro_batch_size=1", "--training.gradient_accumulation=2"]
    jobs = [
        {
            "cache": None,
            "out": str(folder / f"zero {stage}"),
            "options": [named(paths, **OWN), *LONG, *split, f"--deepspeed={stage_file(folder, stage)}"],
            "stop_at": 6 if stage == 2 else None,
        }
        for stage in (0, 2, 3)
    ]
    launch(folder, {"stages": [], "jobs": jobs})
    return folder


def assert_same_trace(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        by_cache = ours.pop("by_cache"), theirs.pop("by_cache")
        assert ours == pytest.approx(theirs, rel=ROUNDING)
        for one, other in zip(*by_cache, strict=True):
            assert one == {name: value if value is None else pytest.approx(value, rel=ROUNDING)
                           for name, value in other.items()}  # fmt: skip


def test_a_step_is_the_sum_of_what_each_cache_asks_of_its_rows(
    paths: list[Path], alone: Processes, tmp_path: Path
) -> None:
    """Loss and gradients, each cache's rows by themselves, divided by the counts of the whole step."""
    settings = small_settings(named(paths, **OWN), "--training.micro_batch_size=5")
    first, *others = (open_cache(path) for path in paths)
    run = assemble(settings, first, tmp_path / "run", alone, others=others)
    parts = [reader.read(0) for reader in run.readers]
    assert [len(part.tokens) for part in parts] == [5, 3, 2]
    step_batch = StepBatch.of(parts, 5, run.caches)
    assert [[part.cache for part in micro] for micro in step_batch.micro_batches] == [[0], [1, 2]]
    counts = GlobalCounts(sum(int(part.loss_mask.sum()) for part in parts), 10)
    coefficients = loop.coefficients_of_next(run, Progress())
    assert [(c.alpha, c.temperature, c.beta) for c in coefficients] == [(0.8, 2.0, 0.2), (0.7, 1.5, 0.3), (0.8, 2.0, 0)]
    expected, sums = torch.zeros(()), []
    for rows, cache, term, wanted in zip(parts, run.caches, run.frobenius, coefficients, strict=True):
        batch = Batch.of(rows, cache, alone.device)
        found = distillation_loss_sums(
            run.student(batch.inputs), run.student.head, batch, temperature=wanted.temperature, frobenius=term
        )
        expected = expected + total_loss(found, wanted, counts)
        sums.append((found, int(rows.loss_mask.sum()), len(rows.tokens)))
    gradients = torch.autograd.grad(expected, list(run.student.parameters()))
    metrics = loop.take_step(run, step_batch, coefficients, step=0, epoch=0)
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-5)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    assert metrics.gradient_norm == pytest.approx(float(norm), rel=1e-4)
    for by_cache, (found, tokens, rows) in zip(metrics.by_cache, sums, strict=True):
        assert (by_cache.tokens, by_cache.rows) == (tokens, rows)
        assert by_cache.cross_entropy == pytest.approx(found.cross_entropy.item() / tokens, rel=1e-5)
        assert by_cache.kl == pytest.approx(found.kl.item() / tokens, rel=1e-5)
    assert metrics.by_cache[0].frobenius == pytest.approx(sums[0][0].frobenius.item() / 5, rel=1e-5)
    assert metrics.by_cache[2].frobenius is None


def test_a_run_stopped_anywhere_continues_to_the_bit(paths: list[Path], alone: Processes, tmp_path: Path) -> None:
    settings = small_settings(named(paths, **OWN), *LONG)
    run_job(settings, None, tmp_path / "whole", alone)
    for step in (2, 8, 13):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(KeyboardInterrupt):
                run_job(settings, None, tmp_path / "stopped", alone)
    assert run_job(settings, None, tmp_path / "stopped", alone).resumed_at == 12
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    rows = np.array([[found["rows"] for found in line["by_cache"]] for line in trace(tmp_path / "whole")])
    assert (rows.sum(axis=1) == 4).all()
    assert (abs(rows.cumsum(axis=0) - 4 * np.arange(1, 15)[:, None] * SHARES) <= 1).all()


def test_two_processes_train_as_one_also_where_one_has_no_row_of_a_cache(
    paths: list[Path], two_processes: Path, alone: Processes, tmp_path: Path
) -> None:
    """Under ZeRO 3 each use of the states' map gathers it, so all processes must use it as often."""
    settings = small_settings(named(paths, **OWN), *LONG)
    run_job(settings, None, tmp_path / "one", alone)
    for stage in (0, 3):
        assert_same_trace(trace(two_processes / f"zero {stage}"), trace(tmp_path / "one"))
    assert run_job(settings, None, two_processes / "zero 2", alone).resumed_at == 3
    assert_same_trace(trace(two_processes / "zero 2"), trace(tmp_path / "one"))


@pytest.mark.parametrize(
    ("shares", "order", "words"),
    [
        ((0.6, 0.2, 0.2), (0, 1, 2), r"with shares 0\.5 of .*buckets and 0\.3 of .* now 0\.6 of .*; set them back"),
        (SHARES, (1, 0, 2), r"of other caches \(.{12}… and .*; give those with --cache, in that order, or another"),
        ((0.5, 0.5), (0, 1), r"of other caches \(.{12}… and .*; give those with --cache, in that order, or another"),
        ((1.0,), (0,), "of other caches"),
    ],
)
def test_other_shares_or_caches_do_not_continue_a_run(
    paths: list[Path], alone: Processes, tmp_path: Path, shares: tuple[float, ...], order: tuple[int, ...], words: str
) -> None:
    out = tmp_path / "run"
    run_job(small_settings(named(paths)), None, out, alone)
    before = weights(out)
    other = small_settings(named([paths[number] for number in order], shares))
    with pytest.raises(UserError, match=f"step_00000006: a checkpoint {words}"):
        run_job(other, None, out, alone)
    assert weights(out) == before


def test_the_same_shares_said_otherwise_continue_it_and_own_settings_do_not(
    paths: list[Path], alone: Processes, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run_job(small_settings(named(paths)), None, out, alone)
    assert run_job(small_settings(named(paths, [5, 3, 2])), None, out, alone).resumed_at == 6
    with pytest.raises(UserError, match=r"a checkpoint with caches\.1\.distillation\.\w+ None, now"):
        run_job(small_settings(named(paths, **OWN)), None, out, alone)


def test_a_list_of_one_cache_is_that_cache(paths: list[Path], alone: Processes, tmp_path: Path) -> None:
    run_job(small_settings(named(paths[:1], [0.3])), None, tmp_path / "listed", alone)
    run_job(small_settings(), paths[0], tmp_path / "alone", alone)
    assert trace(tmp_path / "listed") == trace(tmp_path / "alone")
    assert weights(tmp_path / "listed") == weights(tmp_path / "alone")
    state = json.loads((newest(tmp_path / "alone") / "state.json").read_text())
    assert state["caches"] == []
    assert "by_cache" not in trace(tmp_path / "alone")[0]
    assert run_job(small_settings(), paths[0], tmp_path / "listed", alone).resumed_at == 6


def test_the_command_says_what_it_reads_and_what_came_of_it(
    paths: list[Path], alone: Processes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    held_out = f"--evaluation.caches={json.dumps([str(path) for path in paths[:2]])}"
    settings = small_settings(named(paths), held_out, *LONG, "--evaluation.every=7", "--evaluation.max_rows=5")
    outcome = run_job(settings, None, out, alone)
    finish(outcome)
    said = capfd.readouterr()
    assert f"cache 1: 0.5 of the rows from {paths[0]}: 20 rows, 1.40 passes" in said.err
    assert "9 rows, 1.22 passes, no averaged hidden states, so trained without the Frobenius term" in said.err
    for path in paths[:2]:
        assert f"held out: {path}" in said.out
    assert "trained on, means over up to 100 last steps" in said.out
    assert "50.00%" in said.out
    provenance = read_provenance(out)
    assert provenance is not None
    assert [(cache.path, cache.share) for cache in provenance.caches] == list(zip(map(str, paths), SHARES, strict=True))
    measured = read_run(out).evaluations
    assert [(line["step"], line["path"]) for line in measured] == [
        (step, str(path)) for step in (0, 7, 14) for path in paths[:2]
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher_measures_by_cache"].keys() == {open_cache(path).fingerprint for path in paths[:2]}
    assert read_settings(out).caches == settings.caches


def run(*words: Path | str) -> None:
    app([str(word) for word in words], result_action="return_value", exit_on_error=False)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("=0.7", "=0", "--cache .*sampled=0: the share must be above 0; give --cache .*sampled=SHARE, or leave"),
        ("=0.7", "=-0.3", "--cache .*sampled=-0.3: the share must be above 0"),
        ("=nan", "=1", "--cache .*buckets=nan: the share must be above 0"),
        ("=0.7", "", "sampled has no share and others have one; give every cache a share, or none"),
    ],
)
def test_a_share_that_is_none_is_refused(
    paths: list[Path], tmp_path: Path, first: str, second: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run("--cache", f"{paths[0]}{first}", "--cache", f"{paths[1]}{second}", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
