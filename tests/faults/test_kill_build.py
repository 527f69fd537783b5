"""A build killed with SIGKILL, then run again, leaves the same bytes as one that was never disturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from e2e_corpus import write_text_corpus

from teacher_cache import open_cache

KILLS = 3
SHARDS = 12


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "teacher_cache", "build", str(config), "--out", str(out)]


def contents(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file()}


def run_to_the_end(config: Path, out: Path) -> None:
    done = subprocess.run(command(config, out), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def kill_after_a_shard(config: Path, out: Path, delay: float) -> None:
    """Start a build and kill it `delay` seconds after it has committed one more shard."""
    before = len(list(out.glob("commits/*.json")))
    process = subprocess.Popen(command(config, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(out.glob("commits/*.json"))) == before:
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(600)
def test_killed_anywhere_then_continued_is_byte_identical(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = {
        "teacher": {"model": str(tiny_teacher)},
        "corpus": {"source": str(write_text_corpus(tmp_path))},
        "rows": {"seq_len": 64, "count": 16 * SHARDS},
        "targets": {"top_k": 64},
        "compute": {"batch_size": 2, "rows_per_shard": 16},
    }
    config = tmp_path / "build.yaml"
    config.write_text(yaml.safe_dump(settings))
    run_to_the_end(config, tmp_path / "undisturbed")
    chance = random.Random(7)
    killed = tmp_path / "killed"
    unfinished = 0
    for _ in range(KILLS):
        kill_after_a_shard(config, killed, delay=chance.uniform(0, 0.1))
        unfinished += not open_cache(killed, allow_unfinished=True).is_finished
    run_to_the_end(config, killed)
    assert unfinished >= 2, "the build was over before it could be killed"
    assert contents(killed) == contents(tmp_path / "undisturbed")
