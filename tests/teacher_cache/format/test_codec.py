import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from teacher_cache.format.arrays import array_specs
from teacher_cache.format.codec import (
    describe_arrays,
    describe_group,
    encode_shard,
    encoding_beside_other_work,
    quiet_zarr,
    widen_bfloat16,
)
from teacher_cache.format.keys import GROUP_KEY
from teacher_cache.read.cache import open_cache
from tests.helpers.golden import KINDS, golden_cache, golden_manifest


def read_arrays(kind: str) -> Mapping[str, NDArray[Any]]:
    cache = open_cache(golden_cache(kind))
    return cache.rows(range(len(cache))).arrays


@pytest.mark.parametrize("kind", KINDS)
def test_golden_rows_encode_to_the_golden_bytes(kind: str) -> None:
    """With the codecs that constraints.txt names; others may compress to other bytes that decode to the same."""
    manifest = golden_manifest(kind)
    whole, documents = read_arrays(kind), describe_arrays(manifest)
    for shard in range(manifest.shard_count):
        rows = manifest.shard_rows(shard)
        arrays = {name: array[rows.start : rows.stop] for name, array in whole.items()}
        for key, data in encode_shard(manifest, documents, shard, arrays).items():
            assert bytes(data) == (golden_cache(kind) / key).read_bytes(), key


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_is_that_of_the_golden_caches(kind: str) -> None:
    manifest = golden_manifest(kind)
    documents = {**describe_arrays(manifest), GROUP_KEY: describe_group(manifest)}
    on_disk = {str(path.relative_to(golden_cache(kind))): path for path in golden_cache(kind).rglob("zarr.json")}
    assert set(documents) == set(on_disk)
    for key, document in documents.items():
        assert document == on_disk[key].read_bytes(), key


def test_zeros_are_objects_too() -> None:
    manifest = golden_manifest("sampled")
    arrays = {name: np.zeros_like(array[:4]) for name, array in read_arrays("sampled").items()}
    objects = encode_shard(manifest, describe_arrays(manifest), 0, arrays)
    assert set(objects) == {spec.data_key(0) for spec in array_specs(manifest)}
    assert all(len(data) > 0 for data in objects.values())


def test_bfloat16_is_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widen_bfloat16(bits), expected, equal_nan=True)


def warn() -> None:
    warnings.warn("Numcodecs codecs are not in the Zarr version 3 specification", ZarrUserWarning, stacklevel=1)


def test_the_filter_of_warnings_outlasts_the_thread_that_set_it_first() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet_zarr():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with quiet_zarr():
        leave.set()
        thread.join()
        warn()
    with pytest.raises(ZarrUserWarning):
        warn()


def test_encoding_leaves_a_quarter_of_the_cores_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with encoding_beside_other_work():
        assert zarr.config.get("threading.max_workers") == 6
    assert zarr.config.get("threading.max_workers") is None
    with zarr.config.set({"threading.max_workers": 3}), encoding_beside_other_work():
        assert zarr.config.get("threading.max_workers") == 3
