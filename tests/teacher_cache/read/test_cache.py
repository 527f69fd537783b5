"""Opening a cache, its rows and its targets; what is damaged, missing or not built is an error of its kind."""

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import load_file

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.format.codec import quiet_zarr, widen_bfloat16
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheCorruptError, CacheFormatError, CacheUnfinishedError
from teacher_cache.read.cache import Cache
from tests.helpers.golden import golden_cache


@pytest.fixture
def copy(synthetic_cache: Path, tmp_path: Path) -> Path:
    """A cache of one's own to damage."""
    return Path(shutil.copytree(synthetic_cache, tmp_path / "copy"))


def test_shapes_dtypes_and_alignment(synthetic_cache: Path) -> None:
    cache = open_cache(synthetic_cache)
    rows = cache.rows(range(20))
    assert len(cache) == 20
    assert cache.shards == [range(8), range(8, 16), range(16, 20)]
    assert rows.tokens.shape == (20, 13)
    assert rows.ids.shape == rows.values.shape == (20, 12, 8)
    assert rows.log_mass.shape == (20, 12, 5)
    assert rows.hidden_mean is not None
    assert rows.hidden_mean.shape == (20, 12, 16)
    assert (np.diff(rows.values, axis=-1) <= 0).all()
    assert rows.ids.max() < 300


def test_any_order_of_rows_reads_the_same(synthetic_cache: Path) -> None:
    cache = open_cache(synthetic_cache)
    whole, some = cache.rows(range(20)), cache.rows([17, 2, 2, 9])
    for name, array in some.arrays.items():
        assert np.array_equal(array, whole.arrays[name][[17, 2, 2, 9]]), name
    assert np.array_equal(cache[-1].values, whole.values[19])


@pytest.mark.parametrize("rows", [[4, 1, 1], [2], range(1, 3), range(3, 5), range(0)])
def test_parts_of_chunks_without_unused_places_read_as_the_whole(rows: Sequence[int]) -> None:
    cache = open_cache(golden_cache("v2-sampled"))
    whole, some = cache.rows(range(5)), cache.rows(rows)
    assert whole.values is not None
    assert (whole.values == -np.inf).any()
    for name, array in some.arrays.items():
        assert np.array_equal(array, whole.arrays[name][list(rows)]), name


def test_more_entries_than_places_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = open_cache(golden_cache("v2-sampled")), Cache._read
    monkeypatch.setattr(Cache, "_read", lambda *which: read(*which) + 9)
    with pytest.raises(CacheCorruptError, match=r"logits/position cannot be decoded .*entries in 9 places"):
        cache.rows(range(5))


def test_plain_zarr_reads_the_same_arrays(synthetic_cache: Path) -> None:
    rows = open_cache(synthetic_cache).rows(range(20))

    def plain(name: str) -> NDArray[Any]:
        array = zarr.open_group(synthetic_cache, mode="r")[name]
        assert isinstance(array, zarr.Array)
        return np.asarray(array[:])

    with quiet_zarr():
        assert np.array_equal(plain("logits/ids"), rows.ids)
        assert np.array_equal(plain("logits/values"), rows.values.astype(np.float16))
        assert np.array_equal(plain("tokens"), rows.tokens)
        assert np.array_equal(widen_bfloat16(plain("hidden/mean")), rows.hidden_mean)


def test_no_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheFormatError, match="no such folder"):
        open_cache(tmp_path / "absent")
    with pytest.raises(CacheFormatError, match="no teacher cache here"):
        open_cache(tmp_path)


def test_a_missing_object_is_never_read_as_zeros(copy: Path) -> None:
    (copy / "logits/values/c/1/0/0").unlink()
    with pytest.raises(CacheCorruptError, match=r"logits/values/c/1/0/0: missing; teacher-cache repair"):
        open_cache(copy)


def test_a_truncated_object_is_named(copy: Path) -> None:
    path = copy / "hidden/mean/c/0/0/0"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CacheCorruptError, match="bytes instead of"):
        open_cache(copy)


def test_a_flipped_bit_in_a_chunk_is_noticed_on_reading(copy: Path) -> None:
    path = copy / "logits/values/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(data)
    with pytest.raises(CacheCorruptError, match="logits/values/c/0/0/0: its bytes are not those that were written"):
        open_cache(copy).rows(range(8))
    with pytest.raises(CacheCorruptError, match="logits/values cannot be decoded"):
        open_cache(copy, check_digests=False).rows(range(8))


def test_an_object_that_goes_away_while_a_cache_is_open_is_an_error(copy: Path) -> None:
    cache = open_cache(copy, check_digests=False)
    (copy / "logits/values/c/0/0/0").unlink()
    with pytest.raises(CacheCorruptError, match="logits/values/c/0/0/0: missing"):
        cache.rows(range(8))


def test_an_unfinished_cache_opens_only_when_allowed(copy: Path) -> None:
    (copy / commit_key(1)).unlink()
    with pytest.raises(CacheUnfinishedError, match="2 of 3 shards are built; run teacher-cache build again"):
        open_cache(copy)
    cache = open_cache(copy, allow_unfinished=True)
    assert cache[17].tokens.shape == (13,)
    with pytest.raises(CacheUnfinishedError, match="shard 1 is not built yet"):
        cache.rows([3, 9])


def test_a_commit_record_of_nonsense_is_named(copy: Path) -> None:
    (copy / commit_key(2)).write_text("{")
    with pytest.raises(CacheCorruptError, match=r"00002\.json: not a commit record"):
        open_cache(copy)


def test_a_newer_format_is_refused(copy: Path) -> None:
    document = json.loads((copy / "zarr.json").read_text())
    document["attributes"]["format_version"] = 99
    (copy / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheFormatError, match="format version 99"):
        open_cache(copy)


@pytest.mark.parametrize("kind", ["top", "sampled"])
def test_targets_agree_with_the_rows_they_are_made_of(kind: str) -> None:
    cache = open_cache(golden_cache(kind))
    rows, targets = cache.rows([4, 0]), cache.targets([4, 0], temperature=1.5)
    assert rows.values is not None
    assert targets.temperature == 1.5
    assert np.array_equal(targets.ids, rows.ids)
    assert np.array_equal(targets.values, rows.values)
    top = np.s_[..., : cache.layout.top_k]
    assert np.allclose(targets.weights[top], targets.probabilities[top], rtol=1e-5)
    assert targets.log_partition.shape == targets.entropy.shape == (2, 6)


def test_targets_of_one_position_keep_their_logits(tmp_path: Path) -> None:
    cache = open_cache(golden_cache("sampled"))
    values = [cache.targets([row], temperature=1.5).values for row in range(5)]
    assert np.array_equal(np.concatenate(values), cache.rows(range(5)).values)


def test_exact_targets_are_the_softmax_of_the_head() -> None:
    cache = open_cache(golden_cache("exact"))
    rows, targets = cache.rows(range(5)), cache.targets(range(5), temperature=1.3)
    head = load_file(cache.frozen_weights)["lm_head.weight"][: cache.manifest.vocab_size].double()
    assert rows.final_hidden is not None
    p = torch.softmax(torch.from_numpy(rows.final_hidden).double() @ head.T / 1.3, -1).numpy()
    assert np.allclose(np.take_along_axis(p, targets.ids, -1), targets.weights, rtol=1e-4, atol=1e-7)
    assert np.allclose(targets.weights.sum(-1), 1, atol=1e-5)
    with pytest.raises(UserError, match="exact mode and has no entries to thin"):
        cache.view(top_k=2)


def test_a_temperature_outside_the_cached_range_names_it(synthetic_cache: Path) -> None:
    with pytest.raises(UserError, match=r"temperature 2\.5 is outside the cached range 1 to 2"):
        open_cache(synthetic_cache).targets([0], temperature=2.5)


def test_a_view_keeps_the_width_and_draws_the_same_again() -> None:
    cache = open_cache(golden_cache("sampled"))
    view = cache.view(top_k=2, samples=3)
    rows, whole = view.rows(range(5)), cache.rows(range(5))
    assert rows.values is not None
    assert whole.values is not None
    assert rows.values.shape == whole.values.shape
    assert np.array_equal(rows.values[..., :2], whole.values[..., :2])
    assert (rows.values > -np.inf).sum() < (whole.values > -np.inf).sum()
    assert np.array_equal(view.rows([3]).ids[0], rows.ids[3])
    as_stored = view.rows(range(5), as_stored=True)
    assert np.array_equal(as_stored.ids, whole.ids)
    assert np.array_equal(view.thinned(as_stored.select([3, 1]), np.array([3, 1])).ids, rows.ids[[3, 1]])
    assert np.array_equal(cache.view(top_k=2, samples=3).rows(range(5)).ids, rows.ids)
    with pytest.raises(UserError, match=r"targets\.samples 7: the cache holds 6; choose 0 to 6"):
        cache.view(samples=7)


def test_what_a_cache_says_of_itself() -> None:
    cache = open_cache(golden_cache("top"))
    assert cache.is_finished
    assert cache.path == golden_cache("top")
    assert cache.fingerprint == cache.manifest.fingerprint
    assert cache.tokenizer_folder is None
    assert cache.frozen_weights == golden_cache("top") / "teacher/frozen.safetensors"


def test_damaged_frozen_weights_are_not_handed_out(copy: Path) -> None:
    (copy / "teacher/frozen.safetensors").write_bytes(b"something else")
    cache = open_cache(copy)
    with pytest.raises(CacheCorruptError, match=r"frozen\.safetensors: its bytes are not those that were written"):
        _ = cache.frozen_weights


def test_an_object_that_may_not_be_read_is_named_and_is_no_damage(
    synthetic_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "there/tokens/c/0/0")

    async def refuse(*_: object, **__: object) -> None:
        raise refused

    cache = open_cache(synthetic_cache)
    monkeypatch.setattr("zarr.storage.LocalStore.get", refuse)
    for read in (lambda: cache[0], lambda: open_cache(synthetic_cache)):
        with pytest.raises(
            UserError, match=r"there/tokens/c/0/0: cannot be read \(Permission denied\); make it"
        ) as said:
            read()
        assert not isinstance(said.value, CacheCorruptError)
