"""A build killed with SIGKILL, then run again, leaves the same bytes as one that was never disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from tests.helpers import ROOT
from tests.helpers.damageable import contents
from tests.helpers.e2e_corpus import write_text_corpus

SHARDS = 8


@pytest.fixture
def config(tiny_teacher: Path, tmp_path: Path) -> Path:
    settings = {
        "teacher": {"model": str(tiny_teacher)},
        "corpus": {"source": str(write_text_corpus(tmp_path))},
        "rows": {"seq_len": 32, "count": 8 * SHARDS},
        "targets": {"top_k": 64},
        "compute": {"batch_size": 2, "rows_per_shard": 8},
    }
    path = tmp_path / "build.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.timeout(3600)
def test_killed_anywhere_then_continued_is_byte_identical(
    config: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills = request.config.getoption("--kills")
    script = Path(__file__).with_name("killed_builds.py")
    command = [
        sys.executable,
        str(script),
        str(config),
        str(tmp_path / "sound"),
        str(tmp_path / "out"),
        str(kills),
        "7",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["killed"] == kills
    assert counted["shards_lost"] == 0


def test_two_builders_share_the_work_and_one_that_dies_leaves_its_shard_to_the_next(
    config: Path, tmp_path: Path
) -> None:
    settings = BuildSettings.model_validate(yaml.safe_load(config.read_text()))
    build(settings, tmp_path / "alone")
    out = tmp_path / "shared"
    holder = f"""
import time; from pathlib import Path; from teacher_cache.store.local import LocalStore
with LocalStore(Path({str(out)!r})).lock("shard-00003"):
    print("held", flush=True); time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        report = build(settings, out)
        assert (report.shards_built, report.shards_elsewhere) == (SHARDS - 1, 1)
        assert sorted(open_cache(out, allow_unfinished=True).commits) == [0, 1, 2, 4, 5, 6, 7]
        process.kill()
    report = build(settings, out)
    assert (report.shards_built, report.shards_found, report.shards_elsewhere) == (1, SHARDS - 1, 0)
    assert contents(out) == contents(tmp_path / "alone")
    assert not (out / ".locks").exists()


def test_leftovers_of_a_builder_that_died_are_removed_and_those_of_one_that_lives_are_not(
    config: Path, tmp_path: Path
) -> None:
    settings = BuildSettings.model_validate(yaml.safe_load(config.read_text()))
    out = tmp_path / "cache"
    build(settings, out)
    (out / "commits/00002.json").unlink()
    (out / "commits/00005.json").unlink()
    dead = out / "logits/ids/c/2/0/.staging-0-abc"
    alive = out / "logits/ids/c/5/0/.staging-0-abc"
    for staged in (dead, alive):
        staged.write_bytes(b"half")
    with LocalStore(out).lock("shard-00005"):
        build(settings, out)
    assert not dead.exists()
    assert alive.exists()
