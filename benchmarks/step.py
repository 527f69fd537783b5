"""What a distillation step costs, beside a step of cross-entropy alone and one with the teacher online, in one run.

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
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    CPU,
    Taken,
    figures_parser,
    in_turns,
    median_wall,
    peak_bytes,
    peak_of_process,
    print_figures,
    processor_ratio,
    setup,
    synchronize,
    wall_ratio,
    words,
    write_json,
)
from benchmarks.sizes import SIZES, Sizes, add_size, random_student, random_teacher
from student.data.batch import AveragedStates, Batch, GlobalCounts, StepBatch
from student.data.feed import Parts, batches_ahead
from student.data.order import BatchReader
from student.loss.distillation import distillation_loss
from student.loss.divergence import TermWeights
from student.loss.frobenius import FrobeniusTerm
from student.loss.fused import fused_loss
from student.loss.naive import dense_distillation_loss, total_loss
from student.loss.schedule import Coefficients
from student.model.xlstm import XLSTMStudent
from student.run.student import frozen_weights_of
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache
from teacher_cache.settings import TargetSettings

STARTED = time.monotonic()
CASES = ("ce", "cached", "exact", "online")
COEFFICIENTS = Coefficients(alpha=0.55, temperature=1.15, beta=0.1)
"""Those of most of a training: the schedule falls to these within a few hundred steps."""


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
        """One optimizer step on a batch, as new: what a batch computes once and keeps is computed in every step."""
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
            known, temperature = replace(batch, averaged=AveragedStates.everywhere(mean)), COEFFICIENTS.temperature
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


def make_bench(folder: Path, sizes: Sizes, device: torch.device, seed: int, *, online: bool) -> Bench:
    """Everything a step needs; in bfloat16 on a GPU."""
    cache, exact = open_cache(folder / "sparse"), open_cache(folder / "exact")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    student = random_student(sizes, frozen_weights_of(cache), context_length=sizes.seq_len, seed=seed).to(device, dtype)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    teacher = random_teacher(sizes, seed, device) if online else None
    return Bench(student, optimizer, first_batch(cache, sizes, device), first_batch(exact, sizes, device), teacher)


def first_batch(cache: Cache, sizes: Sizes, device: torch.device) -> Batch:
    """The first rows of a cache, as many as a batch has."""
    return Batch.of(cache.rows(range(sizes.rows)), cache, device)


def time_cases(bench: Bench, device: torch.device, repeats: int) -> dict[str, list[Taken]]:
    """Times of each case's step."""
    cases = [case for case in CASES if case != "online" or bench.teacher is not None]
    return in_turns({case: partial(bench.step, case) for case in cases}, repeats, device)


def ratios(times: dict[str, list[Taken]], case: str, other: str) -> dict[str, float]:
    """Medians over rounds of what one case takes over another, by both clocks."""
    return {
        f"time_{case}_over_{other}": wall_ratio(times[case], times[other]),
        f"processor_time_{case}_over_{other}": processor_ratio(times[case], times[other]),
    }


def data_wait_share(bench: Bench, folder: Path, sizes: Sizes, device: torch.device, batches: int, seed: int) -> float:
    """Share of the time of steps, except the first, that is spent waiting for batches made ahead."""
    cache = open_cache(folder / "sparse")
    reader = BatchReader(cache, seed=seed, global_batch=sizes.rows)

    def prepare(parts: Parts) -> StepBatch:
        return StepBatch.of(parts, sizes.rows, [cache], pinned=device.type == "cuda")

    waited, started = 0.0, 0.0
    with batches_ahead([reader], range(batches + 1), prepare) as feed:
        for step in range(batches + 1):
            asked = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - asked
            if step == 0:
                waited, started = 0.0, time.perf_counter()
            for part in batch.on(device):
                bench.train_on(part.parts[0], "cached")
    synchronize(device)
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

        times = in_turns({kernels: partial(both_ways, kernels) for kernels in ("naive", "auto")}, repeats, device)
        return wall_ratio(times["naive"], times["auto"])
    return None


def two_steps(bench: Bench, case: str) -> None:
    """Steps after which the optimizer's states exist."""
    for _ in range(2):
        bench.step(case)


def peak_with_building(folder: Path, sizes: Sizes, case: str, seed: int) -> int:
    """Peak memory of building and two steps of a case on a CPU, in bytes."""
    return peak_bytes(lambda: two_steps(make_bench(folder, sizes, CPU, seed, online=case == "online"), case))


def peaks_on_gpu(bench: Bench, sizes: Sizes, seed: int, device: torch.device) -> tuple[dict[str, int], Bench]:
    """Peak memory of each case; the teacher is there for `online` alone, which comes last."""
    memory = {case: peak_bytes(partial(two_steps, bench, case), device) for case in CASES[:-1]}
    bench = replace(bench, teacher=random_teacher(sizes, seed, device))
    return memory | {"online": peak_bytes(partial(two_steps, bench, "online"), device)}, bench


def step_peak_of_process(folder: Path, arguments: argparse.Namespace, case: str) -> int:
    """`peak_with_building` in a fresh process."""
    options = ["--size", arguments.size, "--seed", str(arguments.seed), "--rows", str(sizes_of(arguments).rows)]
    return peak_of_process("benchmarks.step", *options, "--peak", case, str(folder))


def say(what: str) -> None:
    """Say on standard error what is going on, with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", file=sys.stderr, flush=True)


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes asked for by name, with another number of rows per batch where it is given."""
    sizes = SIZES[arguments.size]
    return sizes if arguments.rows is None else replace(sizes, rows=arguments.rows)


def measure_step(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    sizes, device, repeats = sizes_of(arguments), torch.device(arguments.device), arguments.repeats
    online = arguments.size != "paper" or device.type == "cuda"
    say("writing caches")
    make_caches(folder, sizes, 2, arguments.seed, arguments.device)
    say("memory of each case")
    if device.type == "cuda":
        bench = make_bench(folder, sizes, device, arguments.seed, online=False)
        memory, bench = peaks_on_gpu(bench, sizes, arguments.seed, device)
    else:
        cases = [case for case in CASES if online or case != "online"]
        memory = {case: step_peak_of_process(folder, arguments, case) for case in cases}
        bench = make_bench(folder, sizes, device, arguments.seed, online=online)
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
    figures["seconds"] = {case: median_wall(steps) for case, steps in times.items()}
    figures["peak_bytes"] = memory
    known = setup(device, repeats=repeats, seed=arguments.seed, size=arguments.size)
    return figures | {"setup": known, "sizes": asdict(sizes), "coefficients": vars(COEFFICIENTS)}


def print_step(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name in ("setup", "sizes", "coefficients"):
        print(f"{name}: {words(figures[name])}")
    print(f"\n{'case':8} {'seconds per step':>16} {'peak MiB':>10}")
    for case, wall in figures["seconds"].items():
        print(f"{case:8} {wall:16.3f} {figures['peak_bytes'][case] / 2**20:10,.0f}")
    print()
    print_figures(figures, "8.3f", 36)


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    add_size(parser, "the paper's student; no teacher online on a CPU")
    parser.add_argument("--rows", type=int, help="rows in a batch, if not as many as the size has")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the median counts")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        case, folder = arguments.peak
        print(peak_with_building(Path(folder), sizes_of(arguments), case, arguments.seed))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_step(arguments, Path(folder))
    print_step(figures)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
