"""What the benchmarks share: clocks, memory, ratios of interleaved rounds, the machine, and the JSON file."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and of this process's processors, to which others on a busy machine add nothing."""

    wall: float
    processor: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def taken(work: Callable[[], object], device: torch.device = CPU) -> Taken:
    """Time of one call, until the device has finished it."""
    synchronize(device)
    wall, processor = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return Taken(time.perf_counter() - wall, time.process_time() - processor)


def seconds(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of one call by the clock, until the device has finished it."""
    return taken(work, device).wall


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device = CPU) -> float:
    """Median seconds of a call by the clock, after one call to warm up."""
    work()
    return statistics.median(seconds(work, device) for _ in range(repeats))


def in_turns(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU, *, warm_up_rounds: int = 1
) -> dict[str, list[Taken]]:
    """Times of each call by name, round by round, after rounds to warm up; each round starts with another call.

    The calls take turns so that a busy machine slows all of them.
    """
    names = list(works)
    times: dict[str, list[Taken]] = {name: [] for name in names}
    for number in range(warm_up_rounds + repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found = taken(works[name], device)
            if number >= warm_up_rounds:
                times[name].append(found)
    return times


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """Median over rounds of one over the other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def wall_ratio(one: Iterable[Taken], other: Iterable[Taken]) -> float:
    """`ratio` by the clock."""
    return ratio((a.wall for a in one), (b.wall for b in other))


def processor_ratio(one: Iterable[Taken], other: Iterable[Taken]) -> float:
    """`ratio` by processor time."""
    return ratio((a.processor for a in one), (b.processor for b in other))


def median_wall(times: Iterable[Taken]) -> float:
    """Median seconds by the clock."""
    return statistics.median(each.wall for each in times)


def status_bytes(field: str) -> int:
    """Memory of this process as the system counts it: `VmHWM` at its peak, `VmRSS` now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_bytes(work: Callable[[], object], device: torch.device = CPU) -> int:
    """Peak memory of a call: the allocator's on a GPU; on a CPU the process's, above what it held before the call.

    A CPU process has only one peak: one of an earlier call counts too. See `peak_of_process`.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    before = status_bytes("VmRSS")
    work()
    return status_bytes("VmHWM") - before


def peak_of_process(module: str, *options: str) -> int:
    """The number that `python -m MODULE OPTIONS...` prints last: `peak_bytes` in a fresh process."""
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 (its own command)
    return int(done.stdout.split()[-1])


def setup(device: torch.device, **more: object) -> dict[str, object]:
    """What the figures depend on besides the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        **more,
    }


def figures_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--json FILE`; the description keeps its lines."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def as_json(figures: object) -> str:
    """Figures as text, for a screen and for a file."""
    return json.dumps(figures, indent=1)


def write_json(figures: object, path: Path | None) -> None:
    """Write figures to the file that `--json` named, if it did."""
    if path is not None:
        path.write_text(as_json(figures) + "\n")


def print_figures(figures: Mapping[str, Any], form: str, width: int) -> None:
    """Print a line per number or word, numbers in the given format; leave out whatever has parts of its own."""
    for name, value in figures.items():
        if isinstance(value, int | float):
            print(f"{name:{width}} {value:{form}}")
        elif isinstance(value, str):
            print(f"{name:{width}} {value}")


def words(values: Mapping[str, object]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
