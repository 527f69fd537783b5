"""DeepSpeed in all its stages and precisions: two processes of each agree with one; a run may change between them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from delta_common.errors import UserError
from student.loss.schedule import cosine_with_warmup, distillation_at
from student.run.checkpoints import find_checkpoint
from student.train import loop
from student.train.assemble import assemble
from student.train.checkpoint import load_checkpoint
from student.train.job import run_job
from student.train.processes import Processes, joined_processes, quiet_deepspeed
from teacher_cache.read.cache import open_cache
from tests.helpers.several_jobs import launch, let_fp16_run_on_a_cpu, run, stage_file
from tests.helpers.small_training import make_uneven_cache, small_settings, trace, weights

ROUNDING = {"fp32": 1e-5, "bf16": 2**-8, "fp16": 2**-11}
"""Largest relative difference. Stages add gradients up in another order, and in 16 bits round the sums elsewhere."""
ALONE = ["--training.micro_batch_size=2", "--training.gradient_accumulation=2"]
TWO = ["--training.micro_batch_size=1", "--training.gradient_accumulation=2"]
MOVES = {"two at ZeRO 2 to one at ZeRO 0": (2, "fp32"), "two at ZeRO 3 to one at ZeRO 1": (3, "fp16")}


@pytest.fixture(scope="module")
def only_process() -> Iterator[Processes]:
    with quiet_deepspeed(), pytest.MonkeyPatch.context() as patch, joined_processes() as processes:
        let_fp16_run_on_a_cpu(patch)
        yield processes


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_uneven_cache(tmp_path_factory.mktemp("zero") / "cache")


def options(deepspeed: Path, precision: str, *more: str) -> list[str]:
    return [f"--deepspeed={deepspeed}", f"--training.precision={precision}", "--optimizer.weight_decay=0.1", *more]


def job(cache: Path, out: Path, chosen: list[str], stop_at: int | None = None) -> dict[str, Any]:
    return {"cache": str(cache), "out": str(out), "options": chosen, "stop_at": stop_at}


@pytest.fixture(scope="module")
def two_processes(cache: Path, only_process: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes, started once, have left of many runs."""
    folder = tmp_path_factory.mktemp("two")
    stages = [stage_file(folder, stage) for stage in range(4)]
    begun_alone = job(cache, folder / "one to two", options(stages[0], "fp32", *ALONE), stop_at=3)
    with quiet_deepspeed():
        run(begun_alone, only_process)
    jobs = [
        job(cache, folder / f"{precision} {stage}", options(file, precision, *TWO, "--training.max_steps=3"))
        for precision in ROUNDING
        for stage, file in enumerate(stages)
    ]
    for name, (stage, precision) in MOVES.items():
        jobs.append(job(cache, folder / name, options(stages[stage], precision, *TWO), stop_at=3))
    evaluated = [f"--evaluation.cache={cache}", "--evaluation.max_rows=27"]
    jobs.append(job(cache, folder / "one to two", options(stages[3], "fp32", *TWO, *evaluated)))
    launch(folder, {"stages": [str(file) for file in stages], "jobs": jobs})
    return folder


def assert_same_trace(found: list[dict[str, Any]], expected: list[dict[str, Any]], precision: str) -> None:
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=ROUNDING[precision])


@pytest.mark.parametrize("precision", ROUNDING)
def test_every_stage_with_two_processes_trains_to_the_trace_of_one_without_zero(
    cache: Path, two_processes: Path, alone: Processes, tmp_path: Path, precision: str
) -> None:
    chosen = options(stage_file(tmp_path, 0), precision, *ALONE, "--training.max_steps=3")
    run_job(small_settings(*chosen), cache, tmp_path / "one", alone)
    for stage in range(4):
        assert_same_trace(trace(two_processes / f"{precision} {stage}"), trace(tmp_path / "one"), precision)


@pytest.mark.parametrize("name", MOVES)
def test_a_run_continues_with_other_processes_and_another_stage(
    cache: Path, two_processes: Path, alone: Processes, tmp_path: Path, name: str
) -> None:
    _, precision = MOVES[name]
    chosen = options(stage_file(tmp_path, int(name[-1])), precision, *ALONE)
    run_job(small_settings(*chosen), cache, tmp_path / "whole", alone)
    outcome = run_job(small_settings(*chosen), cache, two_processes / name, alone)
    assert outcome.resumed_at == 2
    assert_same_trace(trace(two_processes / name), trace(tmp_path / "whole"), precision)


def test_a_run_of_one_continues_as_two_under_zero_3(
    cache: Path, two_processes: Path, alone: Processes, tmp_path: Path
) -> None:
    evaluated = [f"--evaluation.cache={cache}", "--evaluation.max_rows=27"]
    chosen = options(stage_file(tmp_path, 0), "fp32", *ALONE, *evaluated)
    expected = run_job(small_settings(*chosen), cache, tmp_path / "whole", alone)
    assert expected.after is not None
    assert_same_trace(trace(two_processes / "one to two"), trace(tmp_path / "whole"), "fp32")
    measured = json.loads((two_processes / "one to two" / "evaluation.jsonl").read_text().splitlines()[-1])
    assert measured["kl"] == pytest.approx(expected.after.kl, rel=1e-5)
    assert measured["tokens"] == expected.after.tokens


def overflowing(tmp_path: Path, stage: int, *more: str) -> list[str]:
    """fp16 from a loss scale so large that the first gradients overflow, halved until they do not."""
    file = stage_file(tmp_path, stage, initial_scale_power=19, loss_scale_window=3)
    steps = ["--training.max_steps=12", "--training.epochs=2", "--training.checkpoint_every=2"]
    return options(file, "fp16", *steps, "--optimizer.learning_rate=1e-3", *more)


@pytest.mark.parametrize("restart", ["true", "false"])
def test_a_skipped_step_moves_the_order_and_no_schedule(
    cache: Path, alone: Processes, tmp_path: Path, restart: str
) -> None:
    wanted = small_settings(*overflowing(tmp_path, 1, f"--distillation.restart_each_epoch={restart}"))
    outcome = run_job(wanted, cache, tmp_path / "out", alone)
    found = trace(tmp_path / "out")
    updates = epoch_updates = 0
    for record in found:
        epoch_updates = 0 if record["step"] == 9 else epoch_updates  # 32 rows are 8 batches
        schedule = distillation_at(
            wanted.distillation, epoch=record["epoch"], step_in_epoch=epoch_updates, global_step=updates
        )
        rate = cosine_with_warmup(updates, peak=1e-3, warmup_steps=2, total_steps=12)
        assert (record["alpha"], record["temperature"]) == (schedule.alpha, schedule.temperature)
        assert record["learning_rate"] == pytest.approx(rate)
        assert record["applied"] == (record["gradient_norm"] != float("inf"))
        updates, epoch_updates = updates + record["applied"], epoch_updates + record["applied"]
    assert 4 <= updates <= 8, "some steps are skipped, some not"
    assert outcome.run.engine.skipped_steps == 12 - updates
    counts = [int(outcome.run.reader.read(step).loss_mask.sum()) for step in range(12)]
    assert [record["tokens"] for record in found] == counts


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_that_skips_is_resumed_to_the_bit(cache: Path, alone: Processes, tmp_path: Path, stage: int) -> None:
    chosen = overflowing(tmp_path, stage)
    run_job(small_settings(*chosen), cache, tmp_path / "whole", alone)
    out = tmp_path / "stopped"
    for stop_at in (3, 11):
        run(job(cache, out, chosen, stop_at), alone)
    assert run_job(small_settings(*chosen), cache, out, alone).resumed_at == 10
    assert trace(out) == trace(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")


def test_before_the_first_update_nothing_has_moved(cache: Path, alone: Processes, tmp_path: Path) -> None:
    wanted = small_settings(*overflowing(tmp_path, 0, "--training.max_steps=2"))
    for _ in range(2):
        with pytest.raises(UserError, match="step 2: the gradient has not been finite for 2 steps"):
            run_job(wanted, cache, tmp_path / "out", alone)
    assert [record["applied"] for record in trace(tmp_path / "out")] == [False, False]
    continued, untouched = (assemble(wanted, open_cache(cache), tmp_path / name, alone) for name in ("out", "other"))
    found = find_checkpoint(tmp_path / "out")
    assert found is not None
    load_checkpoint(continued.engine, *found)
    for ours, theirs in zip(continued.student.parameters(), untouched.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def break_gradients(patch: pytest.MonkeyPatch, broken_from: int, broken_to: int) -> None:
    """Make the gradient infinite in some steps, of a loss that is a number, as a recurrence can."""
    whole, steps = loop.loss_of, iter(range(1000))

    def loss_of(run: Any, batch: Any, hidden_states: torch.Tensor, *rest: Any) -> Any:
        if broken_from <= next(steps) // run.settings.training.gradient_accumulation < broken_to:
            hidden_states.register_hook(lambda gradient: gradient * torch.inf)
        return whole(run, batch, hidden_states, *rest)

    take_step = loop.take_step
    patch.setattr(loop, "take_step", lambda *arguments: take_step(*arguments, loss_of))


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    chosen = options(stage_file(tmp_path, stage), precision)
    break_gradients(monkeypatch, 2, 4)
    outcome = run_job(small_settings(*chosen, "--training.max_steps=6"), cache, tmp_path / "out", alone)
    found = trace(tmp_path / "out")
    assert [record["applied"] for record in found] == [True, True, False, False, True, True]
    assert [record["gradient_norm"] == float("inf") for record in found] == [False, False, True, True, False, False]
    assert found[2]["learning_rate"] == found[3]["learning_rate"] == found[4]["learning_rate"]
    assert all(torch.isfinite(parameter).all() for parameter in outcome.run.student.parameters())
    assert all(record["loss"] == pytest.approx(record["loss"]) for record in found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_that_has_come_to_nothing_is_given_up(
    cache: Path, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    chosen = options(stage_file(tmp_path, 0), precision)
    break_gradients(monkeypatch, 3, 1000)
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    with pytest.raises(UserError, match=r"step 6: the gradient has not been finite for 3 steps.*learning_rate"):
        run_job(small_settings(*chosen), cache, tmp_path / "out", alone)
    assert [record["applied"] for record in trace(tmp_path / "out")] == [True] * 3 + [False] * 3
