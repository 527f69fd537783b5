"""Bytes that the benchmark counts for our entries are those that a cache of them takes."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.fidelity.schemes import Entries, packed_bytes
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.arrays import ENTRIES, array_specs
from teacher_cache.settings import TargetSettings

FRAME = 4 + 16
"""Bytes of a chunk's checksum and of its place in the shard's index; that has a checksum too."""


def test_entries_take_the_bytes_of_a_cache_of_them(tmp_path: Path) -> None:
    preset = TargetSettings().layout()
    sizes = {"rows": 8, "seq_len": 128, "vocab_size": 4096, "rows_per_shard": 8}
    path = make_synthetic_cache(tmp_path / "cache", **sizes, top_k=preset.top_k, samples=preset.samples)
    cache = open_cache(path)
    arrays = cache.rows(range(8)).arrays
    assert arrays["loss_mask"].all()
    ids, values, log_mass = (np.asarray(arrays[name]).reshape(1024, -1) for name in ENTRIES)
    kept = Entries(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(values), torch.from_numpy(log_mass))
    specs = [spec for spec in array_specs(cache.manifest) if spec.name.startswith("logits/")]
    stored = sum((path / spec.data_key(0)).stat().st_size for spec in specs)
    assert packed_bytes(kept, cache.layout) == stored - len(specs) * (FRAME + 4)
