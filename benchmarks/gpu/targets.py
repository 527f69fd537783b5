"""What keeping targets costs on a GPU, beside the LM head that makes the logits. In one run.

Usage: python -m benchmarks.gpu.targets [--positions 4096] [--preset default] [--rounds 20] [--json FILE] [--tiny]

Times, on the same bfloat16 logits of `positions` over a vocabulary of 151,665 (151,936 rows of the head, d = 1536):

- `head`: the matrix product that makes the logits;
- `kernels`: what is kept, by the Triton kernels; `torch`: the same by their PyTorch twin;
- `naive`: the logits in float32, their top_k and one logsumexp: less than either gives.

`--tiny` is a small size; without a GPU the kernels are left out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import as_json, figures_parser, in_turns, median_wall, wall_ratio, write_json
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.settings import TargetSettings
from teacher_cache.targets.keep import keep_by_kernels, keep_by_torch

SIZES = {False: (151_936, 151_665, 1536), True: (1_040, 1_001, 32)}
"""Rows of the head, real tokens and width, by whether the run is tiny."""


def language_like(positions: int, tiny: bool, device: str) -> tuple[Tensor, Tensor]:
    """States (positions, d) and a head (rows, d), bfloat16, whose logits fall off as a language model's do."""
    rows, _, width = SIZES[tiny]
    random = torch.Generator(device).manual_seed(0)
    head = torch.randn(rows, width, generator=random, device=device) * (2.0 / width**0.5)
    head[:, 0] = -1.2 * torch.log(torch.arange(rows, device=device) + 3.0)
    states = torch.randn(positions, width, generator=random, device=device)
    states[:, 0] = 1.0
    return states.bfloat16(), head.bfloat16()


def works(positions: int, layout: TargetLayout, tiny: bool, device: str) -> dict[str, Callable[[], object]]:
    """The calls to time, by name."""
    states, head = language_like(positions, tiny, device)
    logits = (states @ head.T)[:, : SIZES[tiny][1]]
    labels = torch.zeros(positions, dtype=torch.long, device=device)
    uniform = torch.rand(positions, dtype=torch.float64, device=device)

    def naive() -> None:
        whole = logits.float()
        whole.topk(layout.top_k, dim=-1)
        whole.logsumexp(-1)

    found: dict[str, Callable[[], object]] = {
        "head": lambda: states @ head.T,
        "torch": lambda: keep_by_torch(logits, labels, layout, uniform),
        "naive": naive,
    }
    if device == "cuda":
        found["kernels"] = lambda: keep_by_kernels(logits, labels, layout, uniform)
    return found


@torch.inference_mode()
def measure_targets(positions: int, layout: TargetLayout, rounds: int, tiny: bool) -> dict[str, object]:
    """Median seconds by name and what follows from them, rounds interleaved after one to warm up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    timed = works(positions, layout, tiny, device)
    times = in_turns(timed, rounds, torch.device(device))
    medians = {name: median_wall(found) for name, found in times.items()}
    ours = "kernels" if "kernels" in medians else "torch"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "positions": positions,
        "vocabulary": SIZES[tiny][1],
        "seconds": medians,
        "tokens_per_second": {name: positions / taken for name, taken in medians.items()},
        "kept_over_head": wall_ratio(times[ours], times["head"]),
        "torch_over_kept": wall_ratio(times["torch"], times[ours]),
        "naive_over_kept": wall_ratio(times["naive"], times[ours]),
        "logits_bytes_per_second": positions * SIZES[tiny][1] * 2 / medians[ours],
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[1024, 2048, 4096], help="positions in a chunk")
    parser.add_argument("--preset", choices=["small", "default", "fine"], default="default", help="as of a build")
    parser.add_argument("--rounds", type=int, default=20, help="rounds, of which the median counts")
    parser.add_argument("--tiny", action="store_true", help="a small vocabulary: to try the script")
    arguments = parser.parse_args()
    layout = TargetSettings(preset=arguments.preset).layout()
    rows = [
        {"preset": arguments.preset, **measure_targets(positions, layout, arguments.rounds, arguments.tiny)}
        for positions in arguments.positions
    ]
    for row in rows:
        print(as_json(row))
    write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
