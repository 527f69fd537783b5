"""What caches of FineWeb with Qwen2.5-1.5B take, as a Markdown table: the arithmetic of `teacher-cache plan`.

Usage: python -m benchmarks.fineweb_plan

Costs are those measured on one H200 (docs/benchmarks.md): all that is computed of a batch, and encoding, both with
averaged states in int8, twenty times the bytes of those of `default`; bytes of `benchmarks.wide`; reading with a
tokenizer at half a million tokens per second per core. FineWeb counts tokens of GPT-2; Qwen has a larger vocabulary and
makes somewhat fewer, which is not corrected for.
"""

from teacher_cache.build.plan import BuildEstimate, Costs

SEQ_LEN = 512
LOGITS = {"logits/ids": 65.4, "logits/values": 20.2, "logits/position": 5.8, "tokens": 1.6, "starts": 0.1, "mask": 0.1}
STATES = {"hidden/mean": 67.8, "hidden/mean_scales": 9.3}
COMPUTED, ENCODED, READ = 118_100, 365_000, 500_000
"""Tokens per second."""
LOAD_SECONDS, TEACHER_BYTES = 7.6, 480_000_000
SIZES = {"sample-10BT": 10e9, "sample-100BT": 100e9, "sample-350BT": 350e9, "all of it": 15e12}
ROWS_PER_SHARD = {"sample-10BT": 1024, "sample-100BT": 4096, "sample-350BT": 4096, "all of it": 4096}
OPEN_SECONDS_PER_SHARD = 0.9e-3
"""Time of `open_cache` per shard: local disk, 10,000 shards of 8 arrays, a busy machine."""

HEADS = ["", "H200 hours", "rows per shard", "shards", "objects", "size", "size without states", "restart", "opening"]


def estimate(name: str, arrays: dict[str, float]) -> BuildEstimate:
    """What a cache of one of the sizes takes."""
    costs = Costs(1 / READ, 1 / COMPUTED, 1 / ENCODED, arrays, LOAD_SECONDS, TEACHER_BYTES)
    shards = -(-int(SIZES[name]) // (SEQ_LEN * ROWS_PER_SHARD[name]))
    return BuildEstimate.of(costs, tokens=SIZES[name], shards=shards, overlapping=True)


def cells(name: str) -> list[str]:
    """A line of the table."""
    whole, bare = estimate(name, LOGITS | STATES), estimate(name, LOGITS)
    return [
        name,
        f"{whole.seconds / 3600:,.0f}",
        f"{ROWS_PER_SHARD[name]:,}",
        f"{whole.shards:,}",
        f"{whole.objects:,}",
        f"{whole.bytes / 1e12:,.2f} TB",
        f"{bare.bytes / 1e12:,.2f} TB",
        f"{whole.restart_seconds:.0f} s",
        f"{whole.shards * OPEN_SECONDS_PER_SHARD:,.0f} s",
    ]


def main() -> None:
    """Print the table."""
    lines = [HEADS, ["---", *["---:"] * (len(HEADS) - 1)], *map(cells, SIZES)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
