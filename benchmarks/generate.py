"""What the next token costs after a long text: the student beside a teacher with a KV cache. In one run.

Usage: python -m benchmarks.generate [--paper | --tiny] [--preset transplant | hybrid] [--device cuda] [--repeats 15]
    [--seed 0] [--json FILE]

Both have random weights. With a preset the student has the teacher's layers, as one that began as its teacher has. It
reads a prompt of each length, in float32 as student-generate runs it. The teacher is a Llama of the demo's (or the
paper's) teacher's dimensions, in float32 on a CPU and bfloat16 on a GPU. Its cache, of the kind that `generate` uses by
default, is filled with random keys and values: reading 16,384 tokens would take it minutes on a CPU. A step is the next
token's logits and its choice, one row. Steps take turns, so that a busy machine slows all of them; times are medians, a
ratio is the median of the rounds' ratios. Memory is a case's peak in a process of its own above what that process held
before: resident memory on a CPU, the allocator's on a GPU.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.harness import (
    Taken,
    figures_parser,
    in_turns,
    median_wall,
    peak_bytes,
    peak_of_process,
    setup,
    synchronize,
    wall_ratio,
    words,
    write_json,
)
from benchmarks.sizes import SIZES, Sizes, add_size, random_student, random_teacher, random_transplant
from student.inference.generate import read_prompts
from student.model.frozen import FrozenWeights
from student.model.state import state_bytes
from student.model.student import Student

CONTEXTS = {"demo": (512, 4096, 16384), "paper": (512, 4096, 16384), "tiny": (16, 64)}
PEAK_STEPS = 3


@dataclass
class Case:
    """A model after a text, ready for the next token: `step` takes a token (1, 1) and returns the next one."""

    step: Callable[[Tensor], Tensor]
    carried_bytes: int
    prompt_seconds: float | None = None


def make_student(sizes: Sizes, preset: str | None, device: torch.device, seed: int) -> Student:
    """A student of the configuration's shape, or of the preset and the teacher's, with random frozen matrices."""
    embedding = torch.randn(sizes.vocab, sizes.width, generator=torch.Generator().manual_seed(seed))
    frozen = FrozenWeights(embedding, None, None, sizes.vocab)
    if preset is None:
        return random_student(sizes, frozen, context_length=1, seed=seed).to(device).eval()
    return random_transplant(sizes, frozen, preset, seed=seed).to(device).eval()


def student_case(student: Student, sizes: Sizes, context: int, device: torch.device) -> Case:
    """The student after a prompt of random tokens."""
    prompt = torch.randint(0, sizes.vocab, (context,), generator=torch.Generator().manual_seed(context)).tolist()
    synchronize(device)
    began = time.perf_counter()
    _, state = read_prompts(student, [prompt])
    synchronize(device)
    case = Case(lambda token: token, state_bytes(state), time.perf_counter() - began)

    def step(token: Tensor) -> Tensor:
        nonlocal state
        hidden_states, state = student.step(token, state)
        return student.logits(hidden_states[:, -1]).argmax(-1, keepdim=True)

    case.step = step
    return case


def teacher_case(teacher: Any, sizes: Sizes, context: int, device: torch.device) -> Case:
    """The teacher with as many keys and values as such a prompt leaves."""
    cache = transformers.DynamicCache(config=teacher.config)
    shape = (1, sizes.teacher_kv_heads, context, sizes.width // sizes.teacher_heads)
    for layer in range(sizes.teacher_layers):
        keys, values = torch.randn(2, *shape, device=device, dtype=teacher.dtype)
        cache.update(keys, values, layer)

    def step(token: Tensor) -> Tensor:
        found = teacher(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        chosen: Tensor = found.logits[:, -1].argmax(-1, keepdim=True)
        return chosen

    return Case(step, 2 * sizes.teacher_layers * torch.Size(shape).numel() * teacher.dtype.itemsize)


def time_next_tokens(cases: dict[str, Case], device: torch.device, repeats: int) -> dict[str, list[Taken]]:
    """Times of a step of each case, each on the token that its step before chose."""
    tokens = {name: torch.zeros(1, 1, dtype=torch.long, device=device) for name in cases}

    def step(name: str) -> None:
        tokens[name] = cases[name].step(tokens[name])

    return in_turns({name: partial(step, name) for name in cases}, repeats, device)


def peak_of_generation(arguments: argparse.Namespace, model: str, context: int) -> int:
    """Peak memory of building a model, reading a text, and some steps, in bytes."""
    sizes, device, seed = SIZES[arguments.size], torch.device(arguments.device), arguments.seed

    def run() -> None:
        if model == "student":
            case = student_case(make_student(sizes, arguments.preset, device, seed), sizes, context, device)
        else:
            case = teacher_case(random_teacher(sizes, seed, device), sizes, context, device)
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        for _ in range(PEAK_STEPS):
            token = case.step(token)

    return peak_bytes(run, device)


def generation_peak_of_process(arguments: argparse.Namespace, model: str, context: int) -> int:
    """`peak_of_generation` in a fresh process."""
    options = ["--size", arguments.size, "--device", arguments.device, "--seed", str(arguments.seed)]
    options += ["--preset", arguments.preset] if arguments.preset else []
    return peak_of_process("benchmarks.generate", *options, "--peak", model, str(context))


@torch.inference_mode()
def measure_generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, by context."""
    sizes, device = SIZES[arguments.size], torch.device(arguments.device)
    contexts = CONTEXTS[arguments.size]
    student = make_student(sizes, arguments.preset, device, arguments.seed)
    teacher = random_teacher(sizes, arguments.seed, device)
    cases = {("student", context): student_case(student, sizes, context, device) for context in contexts}
    cases |= {("teacher", context): teacher_case(teacher, sizes, context, device) for context in contexts}
    named = {f"{model}_{context}": case for (model, context), case in cases.items()}
    times = time_next_tokens(named, device, arguments.repeats)
    by_context = [row(arguments, named, times, context) for context in contexts]
    first, last = (times[f"student_{context}"] for context in (contexts[0], contexts[-1]))
    return {
        "setup": setup(
            device, repeats=arguments.repeats, seed=arguments.seed, size=arguments.size, preset=arguments.preset
        ),
        "sizes": asdict(sizes),
        "contexts": by_context,
        "student_time_longest_over_shortest": wall_ratio(last, first),
        "student_state_longest_over_shortest": named[f"student_{contexts[-1]}"].carried_bytes
        / named[f"student_{contexts[0]}"].carried_bytes,
    }


def row(
    arguments: argparse.Namespace, cases: dict[str, Case], times: dict[str, list[Taken]], context: int
) -> dict[str, Any]:
    """The figures of one context."""
    student, teacher = cases[f"student_{context}"], cases[f"teacher_{context}"]
    seconds = {model: median_wall(times[f"{model}_{context}"]) for model in ("student", "teacher")}
    assert student.prompt_seconds is not None
    return {
        "context": context,
        "student_seconds_a_token": seconds["student"],
        "teacher_seconds_a_token": seconds["teacher"],
        "student_tokens_per_second": 1 / seconds["student"],
        "teacher_tokens_per_second": 1 / seconds["teacher"],
        "time_teacher_over_student": wall_ratio(times[f"teacher_{context}"], times[f"student_{context}"]),
        "student_prompt_tokens_per_second": context / student.prompt_seconds,
        "student_state_bytes": student.carried_bytes,
        "teacher_cache_bytes": teacher.carried_bytes,
        "student_peak_bytes": generation_peak_of_process(arguments, "student", context),
        "teacher_peak_bytes": generation_peak_of_process(arguments, "teacher", context),
    }


def print_generation(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name in ("setup", "sizes"):
        print(f"{name}: {words(figures[name])}")
    for name in ("student_time_longest_over_shortest", "student_state_longest_over_shortest"):
        print(f"{name} {figures[name]:.3f}")
    print()
    for name in figures["contexts"][0]:
        values = (found[name] for found in figures["contexts"])
        print(
            f"{name:34}"
            + "".join(f"{value:16,.4f}" if isinstance(value, float) else f"{value:16,}" for value in values)
        )


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    add_size(parser, "the paper's student and teacher, for a GPU")
    parser.add_argument("--preset", choices=("transplant", "hybrid"), help="a student with the teacher's layers")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=15, help="rounds, of which the median counts")
    parser.add_argument("--seed", type=int, default=0, help="of weights")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "CONTEXT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        model, context = arguments.peak
        with torch.inference_mode():
            print(peak_of_generation(arguments, model, int(context)))
        return
    figures = measure_generation(arguments)
    print_generation(figures)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
