"""What a distillation step costs beside one of cross-entropy alone and one with the teacher online. Ratios of one run.

Usage: python -m benchmarks.step [--paper | --tiny] [--rows N] [--device cuda] [--repeats 7] [--seed 0] [--json FILE]

Every case is forward, loss, backward and AdamW of the same student on the same rows, with the same one-pass loss but
for `online`: cross-entropy alone; the targets and averaged states of a cache; a cache of final states (`exact`); a
teacher of random weights run in the step, its full logits through `dense_distillation_loss`. Cases take turns, so that
a busy machine slows all of them; a ratio is the median of the rounds' ratios, by the clock and by processor time.
Memory is a case's peak: on a CPU the resident memory of a process of its own, above what it held before it built
anything; on a GPU the allocator's, the teacher there for `online` alone.
"""

import argparse
import contextlib
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from delta_common.settings_file import load_settings
from student.data.batch import Batch, GlobalCounts, StepBatch
from student.data.feed import batches_ahead
from student.data.order import BatchReader
from student.loss.distillation import distillation_loss
from student.loss.divergence import TermWeights
from student.loss.frobenius import FrobeniusTerm
from student.loss.fused import fused_loss
from student.loss.naive import dense_distillation_loss, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import read_frozen_weights
from student.model.shape import TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student
from student.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import TargetSettings

CONFIGS = Path(__file__).parents[1] / "configs"
STARTED = time.monotonic()
CASES = ("ce", "cached", "exact", "online")
COEFFICIENTS = Coefficients(alpha=0.55, temperature=1.15, beta=0.1)
"""Of most of training: the schedule falls to these within some hundred steps."""


@dataclass(frozen=True)
class Sizes:
    """A student's configuration and its batch; the teacher's body, which only `online` runs."""

    config: str
    width: int
    vocab: int
    rows: int
    seq_len: int
    teacher_layers: int
    teacher_heads: int
    teacher_kv_heads: int
    teacher_ffn: int


SIZES = {
    "demo": Sizes("demo-student.yaml", 576, 49152, 8, 256, 30, 9, 3, 1536),
    "paper": Sizes("paper-student.yaml", 1536, 151936, 2, 512, 28, 12, 2, 8960),
    "tiny": Sizes("demo-student.yaml", 96, 300, 4, 16, 2, 4, 2, 96),
}


@dataclass(frozen=True)
class Bench:
    """The student with its optimizer, a batch of each kind of cache, and a teacher where one is online."""

    student: XLSTMStudent
    optimizer: torch.optim.Optimizer
    sparse: Batch
    exact: Batch
    teacher: Any

    def step(self, case: str) -> None:
        """One optimizer step."""
        batch = self.exact if case == "exact" else self.sparse
        self.train_on(batch, case)

    def train_on(self, batch: Batch, case: str) -> None:
        """One optimizer step on a batch, as new: what a batch keeps of its own is made in every step."""
        self.loss(replace(batch), case, self.student(batch.inputs)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Batch, case: str, hidden: Tensor) -> Tensor:
        """The case's loss."""
        head, counts = self.student.head, GlobalCounts(batch.labels.numel(), len(batch.labels))
        if case == "ce":
            weights = TermWeights(1 / counts.tokens, 0.0)
            return fused_loss(hidden, head, batch.labels, batch.valid_positions, None, weights).value
        if case == "online":
            logits, mean = online_targets(self.teacher, batch.inputs)
            known, temperature = replace(batch, hidden_mean=mean), COEFFICIENTS.temperature
            sums = dense_distillation_loss(
                hidden, head, known, logits, temperature=temperature, frobenius=FrobeniusTerm()
            )
            return total_loss(sums, COEFFICIENTS, counts)
        return distillation_loss(hidden, head, batch, COEFFICIENTS, counts, frobenius=FrobeniusTerm()).total


@torch.no_grad()
def online_targets(teacher: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Full logits and averaged hidden states of the teacher, as a trainer without a cache gets them."""
    found = teacher(tokens, output_hidden_states=True, use_cache=False)
    mean = torch.zeros(*tokens.shape, teacher.config.hidden_size, device=tokens.device)
    for states in found.hidden_states[1:]:
        mean += states
    return found.logits, mean / (len(found.hidden_states) - 1)


def make_caches(folder: Path, sizes: Sizes, batches: int, seed: int, device: str) -> None:
    """A sparse cache of some batches and an exact one of one, of a synthetic teacher."""
    preset = TargetSettings().layout()
    shared = {"seq_len": sizes.seq_len, "vocab_size": sizes.vocab, "hidden_size": sizes.width, "seed": seed}
    shared["device"] = device
    kept = {"top_k": min(preset.top_k, sizes.vocab), "samples": preset.samples, "hidden": "int8"}
    rows = batches * sizes.rows
    make_synthetic_cache(folder / "sparse", rows=rows, rows_per_shard=min(rows, 64), **kept, **shared)
    make_synthetic_cache(folder / "exact", rows=sizes.rows, mode="exact", hidden="int8", top_k=1, **shared)


def build(folder: Path, sizes: Sizes, device: torch.device, seed: int, *, online: bool) -> Bench:
    """Everything a step needs; in bfloat16 on a GPU."""
    cache, exact = open_cache(folder / "sparse"), open_cache(folder / "exact")
    frozen = read_frozen_weights(
        cache.frozen_weights, padded_vocab_size=sizes.vocab, vocab_size=sizes.vocab, hidden_size=sizes.width
    )
    settings = load_settings(TrainSettings, CONFIGS / sizes.config)
    shape = resolve_shape(settings.model, TeacherDims(sizes.width, sizes.teacher_layers, sizes.teacher_heads))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    student = build_student(shape, frozen, context_length=sizes.seq_len, seed=seed).to(device, dtype)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    teacher = make_teacher(sizes, seed, device).to(dtype) if online else None
    return Bench(student, optimizer, first_batch(cache, sizes, device), first_batch(exact, sizes, device), teacher)


def first_batch(cache: Cache, sizes: Sizes, device: torch.device) -> Batch:
    """The first rows."""
    return Batch.of(cache.rows(range(sizes.rows)), cache, device)


def make_teacher(sizes: Sizes, seed: int, device: torch.device) -> Any:
    """A Llama of random weights."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=sizes.width,
        vocab_size=sizes.vocab,
        num_hidden_layers=sizes.teacher_layers,
        num_attention_heads=sizes.teacher_heads,
        num_key_value_heads=sizes.teacher_kv_heads,
        intermediate_size=sizes.teacher_ffn,
        tie_word_embeddings=True,
    )
    with device:
        return transformers.LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and of this process's processors, to which others on a busy machine add nothing."""

    wall: float
    processor: float


def taken(work: Callable[[], object], device: torch.device) -> Taken:
    """Time of a call, until the device is done."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Taken(time.perf_counter() - wall, time.process_time() - processor)


def time_cases(bench: Bench, device: torch.device, repeats: int) -> dict[str, list[Taken]]:
    """Each case's step, round by round, after one round to warm up; each round starts with another case."""
    cases = [case for case in CASES if case != "online" or bench.teacher is not None]
    times: dict[str, list[Taken]] = {case: [] for case in cases}
    for repeat in range(repeats + 1):
        first = repeat % len(cases)
        for case in cases[first:] + cases[:first]:
            found = taken(lambda case=case: bench.step(case), device)
            if repeat:
                times[case].append(found)
    return times


def ratios(times: dict[str, list[Taken]], case: str, other: str) -> dict[str, float]:
    """Medians over rounds of what one case takes over another, by both clocks."""
    rounds = list(zip(times[case], times[other], strict=True))
    return {
        f"time_{case}_over_{other}": statistics.median(one.wall / two.wall for one, two in rounds),
        f"processor_time_{case}_over_{other}": statistics.median(one.processor / two.processor for one, two in rounds),
    }


def data_wait_share(bench: Bench, folder: Path, sizes: Sizes, device: torch.device, batches: int, seed: int) -> float:
    """Time spent waiting for batches that are made ahead, of all the time of steps on them but the first."""
    cache = open_cache(folder / "sparse")
    reader = BatchReader(cache, seed=seed, global_batch=sizes.rows)

    def prepare(rows: CachedRows) -> StepBatch:
        return StepBatch.of(rows, sizes.rows, cache, pinned=device.type == "cuda")

    waited, started = 0.0, 0.0
    with batches_ahead(reader, range(batches + 1), prepare) as feed:
        for step in range(batches + 1):
            asked = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - asked
            if step == 0:
                waited, started = 0.0, time.perf_counter()
            for part in batch.on(device):
                bench.train_on(part, "cached")
    if device.type == "cuda":
        torch.cuda.synchronize()
    return waited / (time.perf_counter() - started)


def slstm_speedup(bench: Bench, sizes: Sizes, device: torch.device, repeats: int) -> float | None:
    """xlstm's own loop over the kernels that replace it, forward and backward; None where there are none."""
    with contextlib.suppress(ModuleNotFoundError):
        sequence = importlib.import_module("student.model.kernels.slstm").slstm_sequence
        cell = next(module for module in bench.student.modules() if type(module).__name__.startswith("sLSTMCell"))
        like = next(bench.student.parameters())
        gates = torch.randn(sizes.rows, sizes.seq_len, 4 * sizes.width, device=device, dtype=like.dtype)
        gates.requires_grad_()

        def both_ways(kernels: str) -> None:
            output, _ = sequence(cell, gates, kernels=kernels)
            torch.autograd.grad(output.square().mean(), gates)

        rounds = []
        for _ in range(repeats + 1):
            naive, fast = (taken(lambda k=kernels: both_ways(k), device) for kernels in ("naive", "auto"))
            rounds.append(naive.wall / fast.wall)
        return statistics.median(rounds[1:])
    return None


def peak_on_gpu(bench: Bench, case: str) -> int:
    """Peak memory of two steps of a case, the allocator's."""
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        bench.step(case)
    return torch.cuda.max_memory_allocated()


def peak_bytes(folder: Path, sizes: Sizes, case: str, seed: int) -> int:
    """Peak memory of building and two steps of a case on a CPU, above what this process holds now."""
    before = _status("VmRSS")
    bench = build(folder, sizes, torch.device("cpu"), seed, online=case == "online")
    for _ in range(2):
        bench.step(case)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of_process(folder: Path, arguments: argparse.Namespace, case: str) -> int:
    """`peak_bytes` in a fresh process."""
    options = ["--size", arguments.size, "--seed", str(arguments.seed), "--rows", str(sizes_of(arguments).rows)]
    command = [sys.executable, "-m", "benchmarks.step", *options, "--peak", case, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 (its own command)
    return int(done.stdout.split()[-1])


def say(what: str) -> None:
    """What is going on, with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", file=sys.stderr, flush=True)


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes asked for by name, with other rows a batch where they are given."""
    sizes = SIZES[arguments.size]
    return sizes if arguments.rows is None else replace(sizes, rows=arguments.rows)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    sizes, device, repeats = sizes_of(arguments), torch.device(arguments.device), arguments.repeats
    online = arguments.size != "paper" or device.type == "cuda"
    say("writing caches")
    make_caches(folder, sizes, 2, arguments.seed, arguments.device)
    say("memory of each case")
    cases = [case for case in CASES if online or case != "online"]
    if device.type == "cuda":
        bench = build(folder, sizes, device, arguments.seed, online=False)
        memory = {case: peak_on_gpu(bench, case) for case in cases[:-1]}
        bench = replace(bench, teacher=make_teacher(sizes, arguments.seed, device).bfloat16())
        memory["online"] = peak_on_gpu(bench, "online")
    else:
        memory = {case: peak_of_process(folder, arguments, case) for case in cases}
        bench = build(folder, sizes, device, arguments.seed, online=online)
    say("time of each case")
    times = time_cases(bench, device, repeats)
    say("waiting for data, and the recurrence by itself")
    figures: dict[str, Any] = {
        **ratios(times, "cached", "ce"),
        **ratios(times, "exact", "ce"),
        "memory_cached_over_ce": memory["cached"] / memory["ce"],
        "memory_exact_over_ce": memory["exact"] / memory["ce"],
        "data_wait_share": data_wait_share(bench, folder, sizes, device, repeats, arguments.seed),
    }
    if online:
        figures |= ratios(times, "online", "cached")
        figures["memory_online_over_cached"] = memory["online"] / memory["cached"]
    speedup = slstm_speedup(bench, sizes, device, repeats)
    if speedup is not None:
        figures["slstm_speedup"] = speedup
    figures["seconds"] = {case: statistics.median(step.wall for step in steps) for case, steps in times.items()}
    figures["peak_bytes"] = memory
    return figures | {"setup": setup(arguments, device), "sizes": asdict(sizes), "coefficients": vars(COEFFICIENTS)}


def setup(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        **versions,
        "transformers": transformers.__version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "size": arguments.size,
    }


def show(figures: dict[str, Any]) -> None:
    """As a table."""
    for name in ("setup", "sizes", "coefficients"):
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in figures[name].items())}")
    print(f"\n{'case':8} {'seconds a step':>16} {'peak MiB':>10}")
    for case, wall in figures["seconds"].items():
        print(f"{case:8} {wall:16.3f} {figures['peak_bytes'][case] / 2**20:10,.0f}")
    print()
    for name, value in figures.items():
        if isinstance(value, float):
            print(f"{name:36} {value:8.3f}")


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    parser.set_defaults(size="demo")
    size.add_argument(
        "--paper",
        dest="size",
        action="store_const",
        const="paper",
        help="the paper's student; no teacher online on a CPU",
    )
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="to see that it runs")
    size.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help="rows in a batch, if not as many as the size has")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the median counts")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        case, folder = arguments.peak
        print(peak_bytes(Path(folder), sizes_of(arguments), case, arguments.seed))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
