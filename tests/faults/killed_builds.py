"""Builds that are killed: a process that has everything imported forks them, which makes a kill cheap.

Usage: killed_builds.py CONFIG SOUND OUT KILLS SEED. Prints what happened, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import transformers.models.auto.tokenization_auto
import transformers.models.qwen2.modeling_qwen2  # noqa: F401 - so that not every process imports it

from delta_common.settings_file import load_settings
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings
from tests.helpers.damageable import contents


def start(config: Path, out: Path) -> int:
    """A process of its own that builds; its number."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        build(load_settings(BuildSettings, config), out)
        os._exit(0)
    return pid


def commits(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.glob("commits/*.json")}


def run_to_the_end(config: Path, out: Path) -> float:
    """Build undisturbed; the seconds that took."""
    started = time.monotonic()
    _, status = os.waitpid(start(config, out), 0)
    assert status == 0
    return time.monotonic() - started


def main(config: Path, sound: Path, out: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    whole = run_to_the_end(config, sound)
    killed = finished = lost = 0
    folder = out / "0"
    while killed < kills:
        before = commits(folder)
        pid = start(config, folder)
        time.sleep(chance.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed += os.WIFSIGNALED(status)
        after = commits(folder)
        lost += any(after.get(name) != record for name, record in before.items())
        if not os.WIFSIGNALED(status):
            assert contents(folder) == contents(sound), f"finished after {killed} kills, and not the same"
            finished, folder = finished + 1, out / str(finished + 1)
    run_to_the_end(config, folder)
    assert contents(folder) == contents(sound), "not the same bytes after the last kill"
    print(json.dumps({"killed": killed, "finished": finished, "shards_lost": lost}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
