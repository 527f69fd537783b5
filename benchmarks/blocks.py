"""How fast are the student's blocks, forward and backward, beside xlstm's own modules? In one run.

Usage: python -m benchmarks.blocks [--batch 8] [--seq-len 256] [--width 576] [--heads 12] [--json FILE]

`slstm` and `mlstm` are whole blocks of the student's shape, `mlstm_long` the same with four times the positions in a
quarter of the rows, `recurrence` the sLSTM cell alone. A speed-up is the median over rounds in which xlstm's and ours
run one after the other, by the clock and by processor time, which other programs disturb less; `error` is the worst
parameter gradient of ours, relative to its norm, against float64.
"""

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import (
    figures_parser,
    in_turns,
    median_wall,
    print_figures,
    processor_ratio,
    wall_ratio,
    write_json,
)
from student.model.blocks import run_block
from student.model.frozen import FrozenWeights
from student.model.kernels.slstm import slstm_sequence
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.xlstm import build_student


@dataclass(frozen=True)
class Part:
    """Something that xlstm and we compute: the inputs, both functions of them, and the module with the parameters."""

    name: str
    inputs: Tensor
    theirs: Callable[[Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]
    module: nn.Module


def parts(arguments: argparse.Namespace, dtype: torch.dtype) -> Iterator[Part]:
    """All that is compared, with the same parameters at every call."""
    device, width = torch.device(arguments.device), arguments.width
    shape = resolve_shape(StudentSettings(blocks=2, heads=arguments.heads, slstm_at=(0,)), TeacherDims(width, 2, 2))
    frozen = FrozenWeights(torch.zeros(2, width), None, None, 2)
    student = build_student(shape, frozen, context_length=4 * arguments.seq_len, seed=0, kernels="naive")
    slstm, mlstm = (block.to(device, dtype) for block in student.stack.blocks)
    with torch.no_grad():
        slstm.xlstm.slstm_cell._recurrent_kernel_.normal_(std=width**-0.5, generator=generator(device))

    def inputs(rows: int, positions: int, channels: int = width) -> Tensor:
        made = torch.randn(rows, positions, channels, generator=generator(device), device=device, dtype=dtype)
        return made.requires_grad_()

    def by_us(block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: run_block(block, x, {}, None)[0]

    rows, positions, cell = arguments.batch, arguments.seq_len, slstm.xlstm.slstm_cell
    yield Part("slstm", inputs(rows, positions), slstm, by_us(slstm), slstm)
    gates = inputs(rows, positions, 4 * width)
    yield Part("recurrence", gates, lambda x: cell(x)[0], lambda x: slstm_sequence(cell, x)[0], cell)
    yield Part("mlstm", inputs(rows, positions), mlstm, by_us(mlstm), mlstm)
    yield Part("mlstm_long", inputs(max(1, rows // 4), 4 * positions), mlstm, by_us(mlstm), mlstm)


def generator(device: torch.device) -> torch.Generator:
    """A generator that makes the same numbers after every call."""
    return torch.Generator(device).manual_seed(0)


def forward_and_backward(run: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Forward and backward once."""
    run(inputs).square().mean().backward()


def compare(part: Part, repeats: int) -> dict[str, float]:
    """Speed-ups and our seconds; kernels are compiled in the round that does not count."""
    works = {
        "theirs": partial(forward_and_backward, part.theirs, part.inputs),
        "ours": partial(forward_and_backward, part.ours, part.inputs),
    }
    times = in_turns(works, repeats, part.inputs.device)
    theirs, ours = times["theirs"], times["ours"]
    return {
        f"{part.name}_speedup": wall_ratio(theirs, ours),
        f"{part.name}_processor_speedup": processor_ratio(theirs, ours),
        f"{part.name}_seconds": median_wall(ours),
        f"{part.name}_seconds_xlstm": median_wall(theirs),
    }


def gradients(run: Callable[[Tensor], Tensor], part: Part) -> tuple[Tensor, ...]:
    """Gradients of the mean square of the output in all parameters."""
    return torch.autograd.grad(run(part.inputs).square().mean(), list(part.module.parameters()))


def error(part: Part, exact: Part) -> float:
    """The worst of our parameter gradients, relative to its norm, against float64."""
    pairs = zip(gradients(part.ours, part), gradients(exact.ours, exact), strict=True)
    return max(float((ours - true).norm() / true.norm()) for ours, true in pairs if true.any())


def same_numbers(part: Part, exact: Part) -> Part:
    """The exact part with the inputs and the parameters of the other."""
    exact.module.load_state_dict(part.module.state_dict())
    return Part(exact.name, part.inputs.detach().double().requires_grad_(), exact.theirs, exact.ours, exact.module)


def measure_blocks(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, by name, with what they were measured on."""
    device = torch.device(arguments.device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for part, exact in zip(parts(arguments, torch.float32), parts(arguments, torch.float64), strict=True):
        found[f"{part.name}_error"] = error(part, same_numbers(part, exact))
        found |= compare(part, arguments.repeats)
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure_blocks(arguments)
    print_figures(figures, ".4g", 32)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
