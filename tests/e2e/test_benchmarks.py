"""The benchmarks at a tiny size: they run, and their rows have the fields that are promised."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.fidelity.measure import bias_and_noise
from tests.helpers import ROOT
from tests.helpers.e2e_corpus import write_text_corpus


def run(benchmark: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fidelity_measures_every_scheme_at_every_temperature(tiny_teacher: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    arguments = ["--teacher", str(tiny_teacher), "--dtype", "float32", "--text", str(write_text_corpus(tmp_path))]
    sizes = ["--tokens", "256", "--seeds", "3", "--student-steps", "2"]
    run("fidelity.measure", *arguments, *sizes, "--json", str(output), "--plot", str(plot))
    rows = json.loads(output.read_text())
    wanted = {"scheme", "top_k", "samples", "proposal", "T", "error", "bias", "noise", "bytes_per_token"}
    assert all(wanted <= row.keys() for row in rows)
    assert {row["T"] for row in rows} == {1.0, 1.1, 1.25, 1.5, 2.0}
    errors = {(r["scheme"], r["T"]): r["error"] for r in rows if r["student"] == "random"}
    assert all(math.isfinite(error) for error in errors.values())
    assert errors["sampled, default", 2.0] < errors["top-64, renormalised", 2.0]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_reading_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    run("read", "--rows", "8", "--repeats", "1", "--json", str(output))
    assert {"rows_now", "targets_now", "batches_now"} <= json.loads(output.read_text()).keys()


def test_what_trust_costs_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    run("trust", "--rows", "8", "--seq-len", "16", "--repeats", "1", "--json", str(output))
    figures = json.loads(output.read_text())
    assert {"verify_over_sha256sum", "digests_share_of_read"} <= figures.keys()


def test_students_of_transformers_are_measured_in_both_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # which trainings in this process leave behind
    output = tmp_path / "figures.json"
    printed = run("gpu.trainer", "--tiny", "--device", "cpu", "--repeats", "1", "--epochs", "1", "--json", str(output))
    figures = json.loads(output.read_text())
    assert figures["feed_tokens_per_second"] > 0
    for name, cases in (("student_train", {"ce", "cached"}), ("trainer", {"ce", "cached", "own"})):
        assert set(figures[name]["seconds"]) == cases
        assert figures[name]["time_cached_over_ce"] > 0
        assert f"{name}, cached" in printed


GPU_STEPS = ["commands", "build", "checks", "targets", "blocks"]
"""All but those that have a test of their own or need what is not here."""


def test_all_that_a_gpu_is_asked_runs_small_here(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--tiny", *GPU_STEPS]
    done = subprocess.run(script, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    steps = [line.split("\t") for line in (tmp_path / "steps.tsv").read_text().splitlines()]
    assert [name for name, *_ in steps] == GPU_STEPS
    failures = {name: (tmp_path / f"{name}.log").read_text()[-2000:] for name, code, _ in steps if code != "0"}
    assert not failures
    blocks = json.loads((tmp_path / "blocks.json").read_text())
    for part in ("slstm", "recurrence", "mlstm", "mlstm_long"):
        assert 0 < blocks[f"{part}_error"] < 1e-5
        assert blocks[f"{part}_speedup"] > 0
    table = (tmp_path / "table.md").read_text()
    for figure in ("build_over_teacher", "slstm_speedup", "online over cached, 8 rows", "cached over ce, 32 rows"):
        assert figure in table


def test_a_step_is_measured_beside_one_with_the_teacher_online(tmp_path: Path) -> None:
    output = tmp_path / "online.json"
    run("step", "--tiny", "--repeats", "1", "--json", str(output))
    step = json.loads(output.read_text())
    promised = {"time_cached_over_ce", "memory_cached_over_ce", "time_online_over_cached", "data_wait_share"}
    assert all(math.isfinite(step[name]) and step[name] > 0 for name in promised)
    assert step["data_wait_share"] < 1
    assert set(step["seconds"]) == set(step["peak_bytes"]) == {"ce", "cached", "exact", "online"}


def test_bias_and_noise_are_told_apart() -> None:
    """Errors of a known bias of norm 3 and noise of norm 4 a draw, 400 draws in 50 dimensions."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 50, generator=random) * (4 / 50**0.5)
    shift = torch.zeros(50)
    shift[0] = 3.0
    bias, z, spread = bias_and_noise(noise + shift)
    assert bias == pytest.approx(3.0, rel=0.1)
    assert spread == pytest.approx(4.0, rel=0.1)
    assert z > 10
    assert abs(bias_and_noise(noise)[1]) < 4.5


def test_the_table_of_operations_is_what_its_script_prints() -> None:
    printed = run("fineweb_plan").strip()
    assert printed in (ROOT / "docs" / "operations.md").read_text()


def test_a_teacher_over_two_devices_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    output = tmp_path / "figures.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "benchmarks.gpu.parallel", "--tiny", "--batch", "2", "--json", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert 0 < figures["reach"] < 2
    assert figures["sameness"]["uncut"]["sound"]
    assert figures["sameness"]["uncut"]["teacher/values"]["cached"] > 0
