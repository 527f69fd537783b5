"""Training that is killed: a process that has everything imported forks the runs, which makes a kill cheap.

Usage: killed_training.py CACHE SOUND OUT KILLS SEED OPTION.... Prints what happened, as JSON.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch._dynamo

from student.train.processes import joined_processes, quiet_deepspeed
from tests.helpers.small_training import small_settings

with quiet_deepspeed():
    import transformers.models.llama.modeling_llama  # noqa: F401 - what a student of a Llama imports, once for all forks

    from student.train.job import run_job

STEPS = 24
HAS_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
LEFT = ("metrics.jsonl", "evaluation.jsonl", "trained.safetensors")


options: list[str] = []
"""Settings besides those of every run."""


def start(cache: Path, out: Path) -> int:
    """A process of its own that trains; its number."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        chosen = [f"--training.max_steps={STEPS}", "--training.checkpoint_every=1", f"--evaluation.cache={cache}"]
        settings = small_settings(*chosen, "--evaluation.every=5", "--evaluation.max_rows=4", *options)
        with quiet_deepspeed(), joined_processes() as processes:
            run_job(settings, cache, out, processes)
        os._exit(0)
    return pid


def steps_kept(out: Path) -> int:
    """Steps of the newest checkpoint that is whole."""
    return max([int(state.parent.name[5:]) for state in out.glob("checkpoints/*/state.json")], default=0)


def run_to_the_end(cache: Path, out: Path) -> float:
    """Train undisturbed; the seconds that took."""
    started = time.monotonic()
    _, status = os.waitpid(start(cache, out), 0)
    assert status == 0
    return time.monotonic() - started


def start_and_kill(cache: Path, out: Path, chance: random.Random, whole: float) -> int:
    """Train until killed, at any moment or at one after a new checkpoint, where it matters more; the wait status."""
    before, pid = steps_kept(out), start(cache, out)
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0, whole))
    else:
        while steps_kept(out) == before and os.waitid(os.P_PID, pid, HAS_ENDED) is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, whole / 3))
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def left(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in LEFT}


def main(cache: Path, sound: Path, out: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    assert threading.active_count() == 1, "threads do not survive a fork"
    chance = random.Random(seed)
    whole = run_to_the_end(cache, sound)
    killed = finished = within = 0
    folder = out / "0"
    while killed < kills:
        before = steps_kept(folder)
        status = start_and_kill(cache, folder, chance, whole)
        killed += os.WIFSIGNALED(status)
        assert steps_kept(folder) >= before, "a checkpoint is lost"
        within += os.WIFSIGNALED(status) and before < steps_kept(folder) < STEPS
        if not os.WIFSIGNALED(status):
            assert left(folder) == left(sound), f"finished after {killed} kills, and not the same"
            finished, folder = finished + 1, out / str(finished + 1)
    run_to_the_end(cache, folder)
    assert left(folder) == left(sound), "not the same bytes after the last kill"
    print(json.dumps({"killed": killed, "finished": finished, "killed_between_steps": within}))


if __name__ == "__main__":
    options += sys.argv[6:]
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
