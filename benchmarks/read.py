"""How fast a cache is read back, on one core: by this code, and beside it by that of an earlier commit.

Usage: python -m benchmarks.read [--before FOLDER] [--rows 512] [--width 1536] [--repeats 5] [--json FILE]

FOLDER is a git worktree of another commit. Each code writes a cache of its own and reads it in a process of its own;
the processes take turns on one core. Both presets `default`, or states in int8 by code that draws no channels yet, at
T = 1.3, from disk to

- `rows`: the arrays of a whole shard as `cache.rows` gives them, in the types they are stored in;
- `targets`: weights, entropy and log Z, as `cache.targets` gives them;
- `batches`: what a step needs, in batches of 32 rows: tokens, targets as above, and averaged states in float32.

All in tokens per second of processor time, to which others on a busy machine add little; caches lie in page cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.harness import CPU, figures_parser, print_figures, write_json
from student.data.batch import Batch
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.settings import HiddenSettings, TargetSettings
from teacher_cache.targets.estimate import estimate_at

SEQ_LEN = 128
BATCH_ROWS = 32
TEMPERATURE = 1.3
WORKS = ("rows", "targets", "batches")
ROOT = Path(__file__).parents[1]


class Reader:
    """A process on one core that runs a tree's code; `ask` has it do one of `WORKS` once."""

    def __init__(self, tree: Path, folder: Path, rows: int, width: int) -> None:
        command = [sys.executable, __file__, "--serve", str(folder), "--rows", str(rows), "--width", str(width)]
        self._process = subprocess.Popen(  # noqa: S603 (its own command)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        )
        self._answer()

    def ask(self, work: str) -> float:
        """The seconds of processor time that it took."""
        assert self._process.stdin is not None
        print(work, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if words[:1] != ["done"]:
            raise SystemExit(f"{self._process.args!r} ended")
        return float(words[1])


def serve(folder: Path, rows: int, width: int) -> None:
    """Make a cache, then do what each line of the standard input names."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    preset = TargetSettings().layout()
    sizes = {"rows": rows, "seq_len": SEQ_LEN, "vocab_size": 4096, "rows_per_shard": rows}
    kept = {"top_k": preset.top_k, "samples": preset.samples, "hidden": "int8", "hidden_size": width}
    if "channels" in HiddenSettings.model_fields:
        states = HiddenSettings()
        kept |= {"hidden": states.precision, "hidden_channels": states.drawn(width)}
    cache = open_cache(make_synthetic_cache(folder, **sizes, **kept))

    def batches() -> None:
        found = cache.rows(range(rows))
        for first in range(0, rows, BATCH_ROWS):
            batch = Batch.of(found.select(slice(first, first + BATCH_ROWS)), cache, CPU)
            assert batch.targets.values is not None
            assert batch.targets.log_mass is not None
            estimate_at(batch.targets.values, batch.targets.log_mass, cache.layout, TEMPERATURE)

    works: dict[str, Callable[[], object]] = {
        "rows": lambda: cache.rows(range(rows)),
        "targets": lambda: cache.targets(range(rows), temperature=TEMPERATURE),
        "batches": batches,
    }
    print("done 0", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        works[line.strip()]()
        print("done", time.process_time() - began, flush=True)


def measure_reading(trees: dict[str, Path], rows: int, width: int, repeats: int) -> dict[str, float]:
    """Median tokens per second of each work by each tree's code, and the ratio of the last to the first."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as readers:
        running = {name: Reader(tree, Path(folder) / name, rows, width) for name, tree in trees.items()}
        for reader in running.values():
            readers.callback(reader.close)
        for work in WORKS:
            rounds = [{name: reader.ask(work) for name, reader in running.items()} for _ in range(1 + repeats)][1:]
            for name in running:
                figures[f"{work}_{name}"] = rows * SEQ_LEN / statistics.median(each[name] for each in rounds)
            if len(running) > 1:
                figures[f"{work}_faster"] = statistics.median(each["before"] / each["now"] for each in rounds)
    return figures


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--before", type=Path, help="git worktree of a commit to compare with")
    parser.add_argument("--rows", type=int, default=512, help="rows of the cache that is read, one shard")
    parser.add_argument("--width", type=int, default=1536, help="channels of the teacher's averaged states")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--serve", type=Path, help="for its own processes")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.rows, arguments.width)
        return
    trees = {} if arguments.before is None else {"before": arguments.before.resolve()}
    figures = measure_reading({**trees, "now": ROOT}, arguments.rows, arguments.width, arguments.repeats)
    print_figures(figures, ",.2f", 28)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
