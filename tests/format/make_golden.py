"""Write the golden caches of this version of the format: run once for each, never to make a failing test pass.

Usage: python tests/format/make_golden.py tests/format/golden
"""

import json
import sys
from pathlib import Path

import xxhash

from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.manifest import FORMAT_VERSION
from teacher_cache.read.decode import FIELDS, CachedRows

SIZES = {"rows": 5, "seq_len": 6, "vocab_size": 64, "hidden_size": 70, "rows_per_shard": 4, "seed": 3}
KINDS = {
    "v1-sampled": {"top_k": 3, "samples": 6, "hidden": "int8", "hidden_stride": 2},
    "v1-top": {"top_k": 8, "hidden": "lossless"},
    "v1-exact": {"top_k": 1, "mode": "exact", "exact_hidden": "int8", "hidden": "int4"},
    "v2-sampled": {"top_k": 3, "samples": 6, "hidden": "none"},
    "v2-states": {"top_k": 3, "hidden": "int2", "hidden_channels": 9, "hidden_stride": 2},
}
"""Each was made by the package of its version."""


def digests(rows: CachedRows) -> dict[str, str]:
    """xxh3-128 of every array as it is given to a reader; the dtype and the shape count too."""
    arrays = {name: array for name in FIELDS if (array := getattr(rows, name)) is not None}
    return {n: f"{a.dtype} {a.shape} {xxhash.xxh3_128_hexdigest(a.tobytes())}" for n, a in arrays.items()}


def main(folder: Path) -> None:
    """A cache of each kind of this version, and what reading it gives."""
    expected = json.loads((folder / "expected.json").read_text())
    for name, kind in KINDS.items():
        if name.startswith(f"v{FORMAT_VERSION}-") and not (folder / name).exists():
            path = make_synthetic_cache(folder / name, **SIZES, **kind)
            expected[name] = digests(open_cache(path).rows(range(SIZES["rows"])))
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
