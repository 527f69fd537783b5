"""A build whose teacher is cut over two processes, by the command: the cache of one process up to rounding."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.format.errors import CacheError
from teacher_cache.read.cache import Cache
from teacher_cache.settings import BuildSettings
from teacher_cache.verify.objects import Findings
from teacher_cache.verify.teacher import verify_teacher
from tests.helpers.damageable import contents
from tests.helpers.e2e_corpus import write_text_corpus

SHARDS = 4


def torchrun(processes: int, *words: str) -> "subprocess.CompletedProcess[str]":
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "teacher_cache",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, *words], capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def said(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """What the commands, and not their launcher, wrote to stderr."""
    return [line for line in done.stderr.splitlines() if line.startswith("teacher-cache:")]


@pytest.fixture(scope="module")
def config(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    settings = {
        "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
        "corpus": {"source": str(write_text_corpus(folder))},
        "rows": {"seq_len": 32, "count": 8 * SHARDS},
        "targets": {"value_dtype": "float32", "top_k": 8, "samples": 20},
        "hidden": {"preset": "lossless"},
        "compute": {"batch_size": 4, "rows_per_shard": 8},
    }
    path = folder / "build.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def settings(config: Path) -> BuildSettings:
    return BuildSettings.model_validate(yaml.safe_load(config.read_text()))


@pytest.fixture(scope="module")
def whole(config: Path, settings: BuildSettings) -> Cache:
    build(settings, config.parent / "whole")
    return open_cache(config.parent / "whole")


@pytest.fixture(scope="module")
def cut(config: Path) -> Cache:
    """By four processes: two builders, each with a teacher in two."""
    out = config.parent / "cut"
    done = torchrun(4, "build", str(config), "--out", str(out), "--teacher.parallel", "2")
    assert done.returncode == 0, done.stderr
    assert sum(
        int(line.split(" shards built")[0].split(": ")[1]) for line in done.stdout.splitlines() if "built" in line
    )
    assert done.stdout.count("look at it") == 2, "the leaders report, and nobody else"
    return open_cache(out)


def test_rows_are_those_of_one_process_up_to_rounding(whole: Cache, cut: Cache) -> None:
    assert cut.manifest.compute == {"batch_size": 4, "parallel": 2, "cut": "tensors"}
    assert cut.manifest.teacher == whole.manifest.teacher
    assert cut.manifest.files == whole.manifest.files
    ours, theirs = cut.rows(range(8 * SHARDS)), whole.rows(range(8 * SHARDS))
    assert np.array_equal(ours.tokens, theirs.tokens)
    for name, entries in (("values", slice(8)), ("hidden_mean", slice(None))):
        one, other = (np.asarray(getattr(rows, name), np.float64)[..., entries] for rows in (ours, theirs))
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), name
    assert np.abs(ours.log_mass - theirs.log_mass).max() <= cut.manifest.targets.log_mass_step


def test_the_whole_teacher_agrees_with_the_cache_of_the_cut_one(cut: Cache) -> None:
    findings = Findings(cut.path)
    verify_teacher(cut, findings, model=None, rows=8)
    assert findings.faults == []
    assert findings.measures["teacher/values"]["control"] > 0


def test_a_cache_is_not_continued_with_another_cut(cut: Cache, settings: BuildSettings) -> None:
    with pytest.raises(CacheError, match=r"compute\.parallel: the cache has 2, these settings give None"):
        build(settings, cut.path)


def test_what_is_wrong_is_one_line(config: Path, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "cache"), "--teacher.parallel", "2"]
    done = torchrun(2, "build", str(config), *options, "--corpus.source", str(tmp_path / "nowhere"))
    assert done.returncode != 0
    [line] = said(done)
    assert "corpus.source" in line
    assert not (tmp_path / "cache" / "zarr.json").exists()


def test_a_damaged_shard_is_repaired_by_as_many_processes(cut: Cache, config: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cache"
    shutil.copytree(cut.path, damaged)
    before = contents(damaged)
    shard = next(file for file in (damaged / "hidden" / "mean" / "c" / "1").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    done = torchrun(2, "repair", str(damaged), "--config", str(config), "--teacher.parallel", "2")
    assert done.returncode == 0, done.stderr
    assert "1 shards built again" in done.stdout
    shutil.rmtree(damaged / ".quarantine")
    assert contents(damaged) == before
