"""How fast is an sLSTM block, forward and backward, beside the same block on xlstm's own loop? Ratios from one run.

Usage: python benchmarks/recurrence.py [--batch 8] [--seq-len 256] [--width 576] [--heads 12] [--json FILE]

`block_speedup` is for a whole block with its convolution, gates, norm and feed-forward part, `recurrence_speedup` for
its recurrence alone; both are medians over rounds in which the loop and ours run one after the other. An error is that
of the worst parameter gradient of a block, relative to its norm, against the same block in float64.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from xlstm import FeedForwardConfig, sLSTMBlockConfig, sLSTMLayerConfig
from xlstm.blocks.slstm.block import sLSTMBlock

from student.models.kernels.slstm import KERNELS, slstm_sequence

OURS = "ours"
LOOP = "loop"


def build_block(width: int, heads: int, kernels: str) -> nn.Module:
    """A block of the student's shape; its recurrence is `slstm_sequence` with these kernels."""
    slstm = sLSTMLayerConfig(backend="vanilla", embedding_dim=width, num_heads=heads, conv1d_kernel_size=4)
    feedforward = FeedForwardConfig(proj_factor=4 / 3, act_fn="gelu", embedding_dim=width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block: nn.Module = sLSTMBlock(sLSTMBlockConfig(slstm, feedforward, _num_blocks=2, _block_idx=1))
        block.reset_parameters()
        cell = block.xlstm.slstm_cell
        nn.init.normal_(cell._recurrent_kernel_, std=width**-0.5)
    cell.__class__ = type("Cell", (type(cell),), {"forward": partialmethod(slstm_sequence, kernels=kernels)})
    return block


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Until the device is done."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def both_ways(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds forward and backward."""
    outputs: list[Tensor] = []
    forward = seconds(lambda: outputs.append(run()), device)
    return forward, seconds(lambda: outputs[0].square().mean().backward(), device)


def time_part(part: str, runs: dict[str, Callable[[], Tensor]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each, and the median over rounds of how much faster ours is."""
    rounds = [{name: both_ways(run, device) for name, run in runs.items()} for _ in range(repeats)]
    figures = {f"{part}_speedup": statistics.median(sum(times[LOOP]) / sum(times[OURS]) for times in rounds)}
    for name in runs:
        for way, direction in enumerate(("forward", "backward")):
            median = statistics.median(times[name][way] for times in rounds)
            figures[f"{part}_{direction}_seconds_{name}"] = median
    return figures


def errors(blocks: dict[str, nn.Module], exact: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Worst parameter gradient of each block, relative to its norm, against a block in float64."""
    reference = gradients(exact, inputs.double())
    return {
        f"gradient_error_{name}": max(
            float((ours - true).norm() / true.norm())
            for ours, true in zip(gradients(block, inputs), reference, strict=True)
        )
        for name, block in blocks.items()
    }


def gradients(block: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """Of all parameters, for the mean square of the output."""
    return torch.autograd.grad(block(inputs).square().mean(), list(block.parameters()))


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """All figures, by name."""
    device = torch.device(arguments.device)
    kinds = {LOOP: "naive", OURS: arguments.kernels}
    blocks = {name: build_block(arguments.width, arguments.heads, kind).to(device) for name, kind in kinds.items()}
    exact = build_block(arguments.width, arguments.heads, "auto").to(device, torch.float64)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(arguments.batch, arguments.seq_len, arguments.width, generator=random).to(device)
    gates = torch.randn(arguments.batch, arguments.seq_len, 4 * arguments.width, generator=random).to(device)
    gates.requires_grad_()
    whole = {name: partial(block, hidden) for name, block in blocks.items()}
    alone = {name: partial(recurrence, block, gates) for name, block in blocks.items()}
    return (
        errors(blocks, exact, hidden)
        | time_part("block", whole, device, arguments.repeats)
        | time_part("recurrence", alone, device, arguments.repeats)
    )


def recurrence(block: nn.Module, gates: Tensor) -> Tensor:
    """The output of the block's cell alone."""
    output: Tensor = block.xlstm.slstm_cell(gates)[0]
    return output


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--kernels", default="auto", choices=KERNELS, help="our form of the recurrence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
