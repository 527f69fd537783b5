"""Caches written in each version of the format read to the bit as they did then."""

import json
from pathlib import Path

import numpy as np
import pytest

from teacher_cache import open_cache
from teacher_cache.read.decode import FIELDS
from tests.format import independent_reader
from tests.format.independent_reader import probabilities, read_cache
from tests.format.make_golden import digests

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_golden_cache_reads_to_the_bit(name: str) -> None:
    cache = open_cache(GOLDEN / name)
    assert cache.manifest.format_version == int(name[1])
    found = digests(cache.rows(range(len(cache))))
    assert {field: found[field] for field in EXPECTED[name]} == EXPECTED[name]


def test_every_kind_of_array_is_in_a_golden_cache() -> None:
    arrays = {
        str(p.parent.relative_to(GOLDEN / name)) for name in EXPECTED for p in GOLDEN.glob(f"{name}/**/zarr.json")
    }
    assert {"logits/ids", "logits/values", "logits/log_mass", "exact/hidden", "exact/hidden_scales"} <= arrays
    assert {"hidden/mean", "hidden/mean_scales", "tokens", "document_start", "loss_mask"} <= arrays


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_reader_written_from_the_document_alone_agrees_to_the_bit(name: str) -> None:
    ours, cache = read_cache(GOLDEN / name), open_cache(GOLDEN / name)
    rows = cache.rows(range(len(cache)))
    for field in FIELDS:
        array = getattr(rows, field)
        assert (array is None) == (field not in ours), field
        if array is not None:
            assert array.dtype == ours[field].dtype, field
            assert np.array_equal(array, ours[field]), field
    if rows.values is not None:
        for temperature in (1.0, 1.07, 1.5, 2.0):
            p, included = probabilities(ours, temperature)
            targets = cache.targets(range(len(cache)), temperature=temperature)
            used = (rows.values > -np.inf) & rows.loss_mask[..., None]
            assert np.abs(targets.probabilities - p)[used].max() < 1e-6
            assert np.abs(targets.weights * included - p)[used].max() < 1e-6


def test_the_independent_reader_knows_nothing_of_this_project() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert not {"teacher_cache", "student", "delta_common"} & {word.strip(".,") for word in source.split()}
    assert len(source.splitlines()) < 150
