"""How fast a cache is read back, on one core.

Usage: python -m benchmarks.read [--rows 512] [--repeats 5] [--json FILE]

`decode_tokens_per_second` is from disk to ready targets of the `default` preset at T = 1.3: weights, entropy, log Z;
`read_tokens_per_second` from disk to rows.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.harness import figures_parser, median_seconds, print_figures, write_json
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.settings import TargetSettings

SEQ_LEN = 128


def measure_reading(rows: int, repeats: int) -> dict[str, float]:
    """Tokens per second of reading all rows of a synthetic cache, and of making targets of them."""
    torch.set_num_threads(1)
    preset = TargetSettings().layout()
    sizes = {"rows": rows, "seq_len": SEQ_LEN, "vocab_size": 4096, "rows_per_shard": rows, "hidden": "none"}
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(
            make_synthetic_cache(Path(folder) / "c", top_k=preset.top_k, samples=preset.samples, **sizes)
        )
        taken = median_seconds(lambda: cache.targets(range(rows), temperature=1.3), repeats)
        read_only = median_seconds(lambda: cache.rows(range(rows)), repeats)
    return {"decode_tokens_per_second": rows * SEQ_LEN / taken, "read_tokens_per_second": rows * SEQ_LEN / read_only}


def main() -> None:
    """Measure, print, write JSON."""
    parser = figures_parser(__doc__)
    parser.add_argument("--rows", type=int, default=512, help="rows of the cache that is read")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    arguments = parser.parse_args()
    figures = measure_reading(arguments.rows, arguments.repeats)
    print_figures(figures, ",.0f", 28)
    write_json(figures, arguments.json)


if __name__ == "__main__":
    main()
