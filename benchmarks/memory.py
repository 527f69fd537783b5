"""Host memory of training's data path: the most that reading, windows and batches made ahead take of a cache.

Usage: python -m benchmarks.memory FOLDER [--steps 60] [--batch 8] [--accumulation 4] [--step-seconds 0.2]

The trainer's reader gives the trainer's batches. Each is put on the CPU as a step needs it, and then nothing is done
for `--step-seconds`, so that all that is read ahead is there. Measured is the process's resident memory above what it
held when the cache was open: the student, its optimizer and the libraries are not in it. Where FOLDER is not there, a
cache of nine shards is made first, in some minutes: rows of the paper's size, whatever their vocabulary.
"""

import time
from pathlib import Path

import torch

from benchmarks.harness import CPU, figures_parser, print_figures, status_bytes, write_json
from student.data.batch import StepBatch
from student.data.feed import batches_ahead
from student.data.order import BatchReader
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache

SHARD = 256
SIZES = {
    "rows": 9 * SHARD,
    "rows_per_shard": SHARD,
    "seq_len": 512,
    "vocab_size": 2048,
    "hidden_size": 1536,
    "hidden": "int8",
    "top_k": 8,
    "samples": 50,
}


def measure_memory(path: Path, steps: int, batch: int, accumulation: int, step_seconds: float) -> dict[str, float]:
    """Peak megabytes above an open cache, and at the end; the windows and what one row takes as stored."""
    cache = open_cache(path)
    reader = BatchReader(cache, seed=0, global_batch=batch * accumulation)
    before = status_bytes("VmRSS")
    with batches_ahead([reader], range(steps), lambda parts: StepBatch.of(parts, batch, [cache])) as prepared:
        for step in prepared:
            for part in step.on(CPU):
                assert part.inputs.device == CPU
            time.sleep(step_seconds)
        after, peak = status_bytes("VmRSS"), status_bytes("VmHWM")
    return {
        "process_before_mb": before / 1e6,
        "peak_above_mb": (peak - before) / 1e6,
        "last_above_mb": (after - before) / 1e6,
        "row_kb": sum(array.nbytes for array in cache.rows([0]).arrays.values()) / 1e3,
        "shards_per_window": reader.sizes.window,
        "shards_per_pool": reader.sizes.pool,
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="steps, over more windows than are held")
    parser.add_argument("--batch", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("--step-seconds", type=float, default=0.2, help="how long a step takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.folder.exists():
        make_synthetic_cache(arguments.folder, **SIZES)
    figures = measure_memory(
        arguments.folder, arguments.steps, arguments.batch, arguments.accumulation, arguments.step_seconds
    )
    print_figures(figures, ",.1f", 20)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
