"""What is written down of a step, by whom, and what is counted over steps."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from delta_common.machine import matrix_work
from student.model.operations import training_operations
from student.run.checkpoints import Progress
from student.train.assemble import Run, assemble
from student.train.processes import Processes
from student.train.step_log import (
    CacheMetrics,
    DistillationMetrics,
    StepTime,
    progress_words,
    record,
    step_cost,
    step_log,
)
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import small_settings

METRICS = DistillationMetrics(
    step=3,
    epoch=0,
    loss=1 / 3,
    cross_entropy=4.0,
    kl=0.25,
    frobenius=0.5,
    gradient_norm=2.0,
    alpha=0.8,
    temperature=1.5,
    beta=0.1,
    learning_rate=1e-3,
    tokens=900,
    applied=True,
)
TIME = StepTime(seconds=0.5, waiting=0.1)


@pytest.fixture
def run(uneven_cache: Path, alone: Processes, tmp_path: Path) -> Run:
    made = assemble(small_settings(), open_cache(uneven_cache), tmp_path / "run", alone)
    made.out.mkdir()
    return made


def test_the_first_process_writes_metrics_and_costs(run: Run) -> None:
    with step_log(run, Progress()) as log:
        log.add(METRICS, TIME, Progress(3, 3, 3))
    assert run.metrics.read() == [METRICS.line]
    assert METRICS.line == {name: value for name, value in asdict(METRICS).items() if name != "by_cache"}
    (cost,) = run.costs.read()
    assert {name: cost[name] for name in ("step", "tokens", "seconds", "waiting")} == {
        "step": 3,
        "tokens": 900,
        "seconds": 0.5,
        "waiting": 0.1,
    }


def test_what_is_compiled_is_said_before_the_first_step(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with step_log(run, Progress()):
        assert "compiling" not in capsys.readouterr().err
    monkeypatch.setattr(type(run.student), "can_compile", True)
    with step_log(run, Progress()):
        assert "compiling kernels: up to a minute" in capsys.readouterr().err


def test_a_line_has_each_cache_where_there_are_several(run: Run) -> None:
    first = CacheMetrics(
        rows=3, tokens=700, cross_entropy=4.5, kl=0.2, frobenius=None, alpha=0.8, temperature=1.5, beta=0.0
    )
    second = replace(first, rows=1, tokens=200)
    record(run, replace(METRICS, by_cache=(first, second)))
    (line,) = run.metrics.read()
    assert line.pop("by_cache") == [asdict(first), asdict(second)]
    assert line == METRICS.line


def test_other_processes_write_nothing_and_count_all_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(run, processes=replace(run.processes, rank=1, world_size=2))
    with step_log(other, Progress()) as log:
        assert log.time.share_waiting is None
        for applied in (True, False, False):
            log.add(replace(METRICS, applied=applied), TIME, Progress(6, 6, 6))
        assert log.skipped_in_a_row == 2
        log.add(METRICS, StepTime(1.0, 0.95), Progress(6, 6, 6))
    assert log.skipped_in_a_row == 0
    assert log.time.share_waiting == pytest.approx(1.25 / 2.5)
    assert (run.metrics.read(), run.costs.read()) == ([], [])
    assert capsys.readouterr().err == ""


def test_the_line_names_speed_waiting_and_skipped_updates() -> None:
    words = progress_words(METRICS, TIME, Progress(steps=3, updates=3))
    assert words.startswith("loss 0.3333 CE 4.0000 KL 0.2500 F 0.500 |g| 2.000 α 0.800 T 1.500 lr 1.00e-03")
    assert words.endswith("1,800 tok/s wait 20.0%")
    shown = progress_words(METRICS, TIME, Progress(steps=3, updates=3), mfu=0.3314)
    assert shown.endswith("1,800 tok/s MFU 33.1% wait 20.0%")
    assert progress_words(METRICS, TIME, Progress(steps=3, updates=1)).endswith(" skipped 2")


def test_the_share_of_the_peak_is_of_all_positions_through_the_body_and_of_those_that_count_through_the_head(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with step_log(run, Progress()) as log:
        assert log.work is None, "a CPU has no peak"
        log.add(METRICS, TIME, Progress(3, 3, 3))
    monkeypatch.setattr(matrix_work, "matrix_peak", lambda device, dtype: 1e9)
    with step_log(run, Progress()) as log:
        log.add(METRICS, TIME, Progress(4, 4, 4))
    without, cost = run.costs.read()
    operations = training_operations(run.student)
    assert operations is not None
    positions = run.settings.training.global_batch(1) * run.cache.manifest.seq_len
    assert positions != METRICS.tokens
    expected = (positions * operations.position + METRICS.tokens * operations.counted) / (1e9 * TIME.seconds)
    assert without["mfu"] is None
    assert cost["mfu"] == pytest.approx(expected)


def test_attention_transfer_has_no_share_of_the_peak(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_work, "matrix_peak", lambda device, dtype: 1e9)
    stage = replace(run.stage, settings=run.stage.settings.model_copy(update={"loss": "transfer"}))
    with step_log(replace(run, stage=stage), Progress()) as log:
        assert log.work is None


def test_a_cost_names_the_machine(alone: Processes) -> None:
    cost = step_cost(METRICS, TIME, alone)
    assert cost.machine.startswith("1 × ")
    assert cost.peak_bytes > 2**20
