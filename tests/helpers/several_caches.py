"""Caches of one synthetic teacher that differ in what they keep, to be trained on together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacher_cache.build.synthetic import make_synthetic_cache
from tests.helpers.small_training import LENGTH, VOCAB, WIDTH

SIZES = {"seq_len": LENGTH, "vocab_size": VOCAB, "hidden_size": WIDTH, "rows_per_shard": 4}
KINDS: dict[str, dict[str, Any]] = {
    "buckets": {"rows": 20, "top_k": 8},
    "sampled": {"rows": 13, "top_k": 4, "samples": 9, "hidden": "int8", "hidden_stride": 2},
    "exact": {"rows": 9, "mode": "exact", "top_k": 1, "hidden": "none"},
}
SHARES = (0.5, 0.3, 0.2)


def make_caches(folder: Path, **more: Any) -> list[Path]:
    """Three caches: one bucket for what is not kept, sampled entries, final states without averaged ones."""
    return [Path(make_synthetic_cache(folder / name, **SIZES, **kind, **more)) for name, kind in KINDS.items()]


def named(paths: Sequence[Path], shares: Sequence[float] = SHARES, **own: Any) -> str:
    """The option that names the caches; `own` has more of a cache's settings by its folder's name."""
    caches = [{"path": str(p), "share": s, **own.get(p.name, {})} for p, s in zip(paths, shares, strict=True)]
    return f"--caches={json.dumps(caches)}"
