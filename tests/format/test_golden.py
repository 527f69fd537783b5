"""Caches written by the first release of the format read to the bit as they did then."""

import json
from pathlib import Path

import pytest

from make_golden import digests
from teacher_cache import open_cache

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_golden_cache_reads_to_the_bit(name: str) -> None:
    cache = open_cache(GOLDEN / name)
    assert cache.manifest.format_version == 1
    assert digests(cache.rows(range(len(cache)))) == EXPECTED[name]


def test_every_kind_of_array_is_in_a_golden_cache() -> None:
    arrays = {
        str(p.parent.relative_to(GOLDEN / name)) for name in EXPECTED for p in GOLDEN.glob(f"{name}/**/zarr.json")
    }
    assert {"logits/ids", "logits/values", "logits/log_mass", "exact/hidden", "exact/hidden_scales"} <= arrays
    assert {"hidden/mean", "hidden/mean_scales", "tokens", "document_start", "loss_mask"} <= arrays
