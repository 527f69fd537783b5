"""The experiments at a tiny size: every kind of variant trains, a table says what came out, nothing is done twice."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.caches import build_caches
from experiments.plan import ExperimentPlan, Folder
from experiments.train.timing import time_steps
from experiments.train.training import VariantJob, train_variant
from experiments.variants import all_variants
from student.train.processes import Processes, joined_processes, quiet_deepspeed
from tests.helpers import ROOT
from tests.helpers.e2e_corpus import write_text_corpus

STUDENT = ("model.heads=4", "model.qkv_block_size=4")
WIDTH, PADDED_VOCAB, STEPS = 32, 288, 8
KINDS = ("delta", "online", "exact", "small", "frobenius", "frobenius-weight", "linear", "late-unfreezing")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    texts = [path.read_text() for path in sorted(write_text_corpus(folder).iterdir())]
    for name, part in (("train", texts[10:]), ("heldout", texts[:10])):
        pq.write_table(pa.table({"text": part}), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tiny_teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Caches, and nothing trained."""
    made = Folder(tmp_path_factory.mktemp("experiments"))
    options = tuple(f"--{option}" for option in STUDENT)
    made.settle(
        ExperimentPlan(str(tiny_teacher), str(corpus), 16, rows=16, held_out=4, epochs=2, batch=4, options=options)
    )
    build_caches(made, made.plan())
    return made


@pytest.fixture(scope="module")
def alone() -> Iterator[Processes]:
    with quiet_deepspeed(), joined_processes() as processes:
        yield processes


@pytest.fixture(scope="module")
def results(folder: Folder, alone: Processes) -> dict[str, dict[str, Any]]:
    """A training of each kind, with its curve."""
    found = {}
    for name in KINDS:
        job = VariantJob(folder, folder.plan(), all_variants()[name], seed=3)
        with quiet_deepspeed():
            train_variant(job, alone)
        curve = [json.loads(line) for line in (job.out / "curve.jsonl").read_text().splitlines()]
        found[name] = json.loads((job.out / "result.json").read_text()) | {"curve": curve}
    return found


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_variant_trains(results: dict[str, dict[str, Any]], name: str) -> None:
    result, curve = results[name], results[name]["curve"]
    assert (result["steps"], result["tokens"]) == (STEPS, 16 * 4 * STEPS)
    assert [point["step"] for point in curve] == [0, 2, 4, 6, 8]
    assert curve[-1]["kl"] == result["kl"] < curve[0]["kl"]
    assert curve[0] == results["delta"]["curve"][0], "every variant starts from the same weights"
    assert name == "delta" or curve[-1] != results["delta"]["curve"][-1]


def test_the_same_teacher_through_cache_or_online_teaches_the_same(results: dict[str, dict[str, Any]]) -> None:
    last = {name: results[name]["curve"][-1]["kl"] for name in ("exact", "online")}
    assert last["exact"] == pytest.approx(last["online"], rel=2e-3)


def test_unfreezing_begins_late_and_trains_the_matrices(results: dict[str, dict[str, Any]]) -> None:
    frozen, unfrozen = results["delta"], results["late-unfreezing"]
    assert unfrozen["trained"] == frozen["trained"] + PADDED_VOCAB * WIDTH
    assert [a == b for a, b in zip(frozen["curve"], unfrozen["curve"], strict=True)] == [True] * 4 + [False]


def test_steps_are_timed_in_turns(folder: Folder, alone: Processes) -> None:
    with quiet_deepspeed():
        seconds = time_steps(folder, alone)
    assert seconds.keys() == {"ce", "delta", "online"}
    assert all(found > 0 for found in seconds.values())


def run(folder: Path, teacher: Path, corpus: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    sizes = ["--seq-len", "16", "--rows", "16", "--held-out", "4", "--epochs", "2", "--batch", "4", "--seeds", "2"]
    where = ["--teacher", str(teacher), "--corpus", str(corpus), "--jobs", "2", "--set", *STUDENT]
    command = [sys.executable, "-m", "experiments", str(folder), *sizes, *where, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False, env=environment)


def test_the_command_trains_once_and_writes_tables(tiny_teacher: Path, corpus: Path, folder: Folder) -> None:
    done = run(folder.path, tiny_teacher, corpus, "--only", "ce", "delta")
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in folder.path.glob("runs/*/*/log.txt"))
    trained = {path: path.stat().st_mtime_ns for path in folder.path.glob("runs/*/seed-4?/result.json")}
    assert {(path.parents[1].name, path.parent.name) for path in trained} == {
        (name, seed) for name in ("ce", "delta") for seed in ("seed-42", "seed-43")
    }
    page = (folder.path / "tables.md").read_text()
    for words in ("| CE only | 8 |", "δ-distillation, cached", "The teacher itself: CE", " ± "):
        assert words in page
    assert run(folder.path, tiny_teacher, corpus, "--only", "ce", "delta").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


def test_what_cannot_be_is_refused(tiny_teacher: Path, corpus: Path, folder: Folder) -> None:
    unknown = run(folder.path, tiny_teacher, corpus, "--only", "detla")
    assert unknown.returncode == 2
    assert "--only detla: no such variant" in unknown.stderr
    other = run(folder.path, tiny_teacher, corpus, "--only", "ce", "--epochs", "3")
    assert other.returncode == 2
    assert "results of another size" in other.stderr
