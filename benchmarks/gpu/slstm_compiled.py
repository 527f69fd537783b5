"""The sLSTM recurrence beside the CUDA code that xlstm compiles for its sizes at run time. Needs a GPU and nvcc.

Usage: python -m benchmarks.gpu.slstm_compiled [--batch 8] [--seq-len 512] [--width 1536] [--heads 16] [--json FILE]

Both go forward and backward over the same gate pre-activations in bfloat16; a speed-up is the median over rounds in
which one runs after the other. The error is that of the outputs against float64.
"""

import argparse
import contextlib
import dataclasses
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

from benchmarks.harness import as_json, figures_parser, in_turns, median_wall, wall_ratio, write_json
from student.model.kernels.slstm import slstm_sequence


def make_cells(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """(vanilla, compiled) with the same parameters."""
    sizes = {"hidden_size": arguments.width, "num_heads": arguments.heads, "batch_size": arguments.batch}
    config = sLSTMCellConfig(backend="vanilla", dtype="bfloat16", **sizes)
    with contextlib.redirect_stdout(io.StringIO()):
        vanilla, compiled = (sLSTMCell(dataclasses.replace(config, backend=name)) for name in ("vanilla", "cuda"))
    heads, dim = arguments.heads, arguments.width // arguments.heads
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(heads, dim, 4, dim, generator=generator) * arguments.width**-0.5
    with torch.no_grad():
        for cell in (vanilla, compiled):
            cell._recurrent_kernel_.copy_(cell._recurrent_kernel_ext2int(kernel))
            cell._bias_.copy_(cell._bias_ext2int(vanilla._bias_int2ext(vanilla._bias_)))
    return vanilla.cuda(), compiled.cuda()


def gradient_in_gates(run: Callable[[Tensor], Tensor], gates: Tensor) -> None:
    """Forward and backward once, to the gate pre-activations."""
    torch.autograd.grad(run(gates).square().mean(), gates)


def relative(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - exact).norm() / exact.norm())


def measure_compiled_slstm(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    started = time.perf_counter()
    vanilla, compiled = make_cells(arguments)
    compiling = time.perf_counter() - started
    shape = (arguments.batch, arguments.seq_len, 4 * arguments.width)
    gates = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to("cuda", torch.bfloat16).requires_grad_()

    def ours(x: Tensor) -> Tensor:
        return slstm_sequence(vanilla, x)[0]

    def theirs(x: Tensor) -> Tensor:
        return compiled(x)[0]

    works = {"theirs": partial(gradient_in_gates, theirs, gates), "ours": partial(gradient_in_gates, ours, gates)}
    times = in_turns(works, arguments.repeats, gates.device)
    exact = slstm_sequence(vanilla.double(), gates.double(), kernels="torch")[0].detach()
    vanilla.float()
    return {
        "speedup_over_compiled": wall_ratio(times["theirs"], times["ours"]),
        "seconds": median_wall(times["ours"]),
        "seconds_compiled": median_wall(times["theirs"]),
        "seconds_to_compile": compiling,
        "error": relative(ours(gates), exact),
        "error_compiled": relative(theirs(gates), exact),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the median counts")
    arguments = parser.parse_args()
    figures = measure_compiled_slstm(arguments)
    print(as_json(figures))
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
