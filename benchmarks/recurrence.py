"""How fast is an sLSTM block, forward and backward, beside the same block on xlstm's own loop? Ratios from one run.

Usage: python benchmarks/recurrence.py [--batch 8] [--seq-len 256] [--width 576] [--heads 12] [--json FILE]

`block_speedup` is for a whole block with its convolution, gates, norm and feed-forward part, `recurrence_speedup` for
its recurrence alone; both are medians over rounds in which the loop and ours run one after the other. `max_difference`
is that between the two blocks' outputs, `max_gradient_difference` between parameter gradients, relative to the largest.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
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
    cell.forward = lambda inputs, state=None: slstm_sequence(cell, inputs, state, kernels=kernels)
    return block


def seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def time_both_ways(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds forward and backward."""
    outputs: list[Tensor] = []
    forward = seconds(lambda: outputs.append(run()), device)
    return forward, seconds(lambda: outputs[0].square().mean().backward(), device)


def largest_differences(blocks: dict[str, nn.Module], inputs: Tensor) -> dict[str, float]:
    """Of outputs, and of parameter gradients relative to the largest of each parameter."""
    outputs = {name: block(inputs) for name, block in blocks.items()}
    gradients = {n: torch.autograd.grad(outputs[n].square().mean(), list(b.parameters())) for n, b in blocks.items()}
    pairs = zip(gradients[LOOP], gradients[OURS], strict=True)
    return {
        "max_difference": float((outputs[LOOP] - outputs[OURS]).abs().max()),
        "max_gradient_difference": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs),
    }


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    device = torch.device(arguments.device)
    shape = (arguments.batch, arguments.seq_len)
    kinds = {LOOP: "naive", OURS: arguments.kernels}
    blocks = {name: build_block(arguments.width, arguments.heads, kind).to(device) for name, kind in kinds.items()}
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(*shape, arguments.width, generator=random).to(device)
    gates = torch.randn(*shape, 4 * arguments.width, generator=random).to(device).requires_grad_()
    figures = largest_differences(blocks, hidden)
    parts = {"block": lambda block: block(hidden), "recurrence": lambda block: block.xlstm.slstm_cell(gates)[0]}
    for part, run in parts.items():
        rounds = [
            {name: time_both_ways(lambda block=block: run(block), device) for name, block in blocks.items()}
            for _ in range(arguments.repeats)
        ]
        for name in blocks:
            for way, times in zip(("forward", "backward"), zip(*(r[name] for r in rounds), strict=True), strict=True):
                figures[f"{part}_{way}_seconds_{name}"] = statistics.median(times)
        figures[f"{part}_speedup"] = statistics.median(sum(r[LOOP]) / sum(r[OURS]) for r in rounds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in {"batch": 8, "seq-len": 256, "width": 576, "heads": 12, "repeats": 5}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", default="auto", choices=KERNELS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments)
    for name, value in figures.items():
        print(f"{name:36} {value:.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
