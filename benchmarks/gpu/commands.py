"""What `student-train` does with a GPU, by the command that users run, at the sizes they have.

Usage: python -m benchmarks.gpu.commands [--steps 40] [--json FILE] [--tiny]

The teacher has Qwen2.5-1.5B's sizes and random weights, 151,665 real of 151,936 rows; `teacher-cache build` makes the
cache, in memory where there is `/dev/shm`. Then `student-train` with the paper's preset, each time a process of its
own: 32 and 8 rows of 512 per step in bfloat16, the paper's 4 × 8 in float16, and the same with another loss, by
`benchmarks.gpu.other_losses`: the next token's cross-entropy alone (`ce`), and the teacher run in every step, with its
full logits (`online`) or by its final states and the head in chunks (`online, chunks`). Seconds per step are medians of
`costs.jsonl` without the first ten, and so is MFU, which it has on a card whose peak is known.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.build import QWEN, TINY, TeacherSize, make_corpus, save_random_teacher
from benchmarks.gpu.table import share_words
from benchmarks.harness import figures_parser, print_figures, setup, words, write_json

ROOT = Path(__file__).parents[2]
SETTLING = 10
"""Steps before those that count."""


@dataclass(frozen=True)
class Command:
    """A run of `student-train`."""

    rows: int
    accumulated: int = 1
    precision: str = "bf16"
    loss: str | None = None
    """Of `benchmarks.gpu.other_losses`, in place of the product's."""

    def options(self, steps: int) -> list[str]:
        """Its settings beyond the paper's preset."""
        said = {
            "micro_batch_size": self.rows,
            "gradient_accumulation": self.accumulated,
            "precision": self.precision,
            "max_steps": steps,
        }
        return [word for name, value in said.items() for word in (f"--training.{name}", str(value))]


COMMANDS = {
    "32 rows": Command(32),
    "32 rows, ce": Command(32, loss="ce"),
    "8 rows": Command(8),
    "8 rows, ce": Command(8, loss="ce"),
    "4 × 8 rows, fp16": Command(8, accumulated=4, precision="fp16"),
    "8 rows, online": Command(8, loss="online"),
    "32 rows, online, chunks": Command(32, loss="chunks"),
}
RATIOS = {
    "cached over ce, 32 rows": ("32 rows", "32 rows, ce"),
    "cached over ce, 8 rows": ("8 rows", "8 rows, ce"),
    "online over cached, 8 rows": ("8 rows, online", "8 rows"),
    "online in chunks over cached, 32 rows": ("32 rows, online, chunks", "32 rows"),
}


def make_cache(folder: Path, size: TeacherSize, rows: int, device: str) -> Path:
    """A cache of random letters by a teacher of random weights, through `teacher-cache build`."""
    teacher = save_random_teacher(folder / "teacher", size, device)
    corpus = make_corpus(folder / "corpus", rows * size.seq_len)
    options = {
        "--teacher.model": teacher,
        "--teacher.device": device,
        "--corpus.source": corpus,
        "--rows.seq_len": size.seq_len,
        "--rows.count": rows,
        "--compute.batch_size": 16,
        "--compute.rows_per_shard": 256,
        "--out": folder / "cache",
    }
    run_module("teacher_cache", "build", *(str(word) for option in options.items() for word in option))
    return folder / "cache"


def run_module(name: str, *arguments: str) -> None:
    """Run a module of this tree in a process of its own; what it says goes to standard error."""
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", name, *arguments], check=True, stdout=sys.stderr, env={**os.environ, **here}, cwd=ROOT
    )


def train(cache: Path, command: Command, steps: int, out: Path) -> dict[str, Any]:
    """Seconds per step, tokens per second, MFU, seconds to the first step's end and from the last, and peak memory."""
    shutil.rmtree(out, ignore_errors=True)
    module = ["student"]
    if command.loss is not None:
        module = ["benchmarks.gpu.other_losses", command.loss, str(cache.parent / "teacher")]
    config = ["--config", str(ROOT / "configs" / "paper-student.yaml"), "--training.epochs", "1"]
    began = time.time()
    run_module(*module, "--cache", str(cache), "--out", str(out), *config, *command.options(steps))
    ended = time.time()
    costs = [json.loads(line) for line in (out / "costs.jsonl").read_text().splitlines()]
    settled = costs[min(SETTLING, len(costs) // 2) :]
    step = statistics.median(cost["seconds"] for cost in settled)
    shares = [cost["mfu"] for cost in settled if cost["mfu"] is not None]
    stepping = sum(cost["seconds"] for cost in costs)
    return {
        "seconds": step,
        "tokens_per_second": statistics.median(cost["tokens"] for cost in settled) / step,
        "mfu": statistics.median(shares) if shares else None,
        "waiting": sum(cost["waiting"] for cost in settled) / sum(cost["seconds"] for cost in settled),
        "first_step": costs[0]["seconds"],
        "around_steps": ended - began - stepping,
        "peak_bytes": max(cost["peak_bytes"] for cost in costs),
    }


def measure_commands(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = TINY if arguments.tiny else QWEN
    commands = COMMANDS
    if arguments.tiny:
        commands = {name: replace(each, rows=2, precision="fp32") for name, each in COMMANDS.items()}
    cache = make_cache(folder, size, 32 * (arguments.steps + 1), device)
    found = {}
    for name, each in commands.items():
        found[name] = train(cache, each, arguments.steps, folder / "run")
        print(f"{name}: {words(found[name])}", file=sys.stderr, flush=True)
    pairs = {name: pair for name, pair in RATIOS.items() if pair[0] in found}
    figures = {name: found[one]["seconds"] / found[other]["seconds"] for name, (one, other) in pairs.items()}
    known = setup(torch.device(device), steps=arguments.steps, seed=0, sizes=vars(size))
    return {"setup": known, "commands": found, **figures}


def print_commands(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    print(f"setup: {words(figures['setup'])}\n")
    heads = ("ms per step", "tokens/s", "MFU", "waiting", "first step s", "around steps s", "GiB")
    print(f"{'command':18} " + " ".join(f"{head:>14}" for head in heads))
    for name, each in figures["commands"].items():
        shown = (
            f"{1000 * each['seconds']:.1f}",
            f"{each['tokens_per_second']:,.0f}",
            share_words(each["mfu"]),
            f"{each['waiting']:.2%}",
            f"{each['first_step']:.1f}",
            f"{each['around_steps']:.1f}",
            f"{each['peak_bytes'] / 2**30:.1f}",
        )
        print(f"{name:18} " + " ".join(f"{value:>14}" for value in shown))
    print()
    print_figures(figures, "8.3f", 30)


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--steps", type=int, default=40, help="steps of each command")
    parser.add_argument("--tiny", action="store_true", help="a tiny teacher: to try the script")
    arguments = parser.parse_args()
    memory = Path("/dev/shm")  # noqa: S108 - not a disk, whose speed is no matter here
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        figures = measure_commands(arguments, Path(folder))
    print_commands(figures)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
