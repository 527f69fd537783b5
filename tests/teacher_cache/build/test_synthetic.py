import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from safetensors.numpy import load_file

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.codec import quiet_zarr, widen_bfloat16
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheCorruptError, CacheFormatError, CacheUnfinishedError

SIZES: dict[str, Any] = {
    "rows": 20,
    "seq_len": 12,
    "vocab_size": 300,
    "top_k": 8,
    "hidden_size": 16,
    "rows_per_shard": 8,
}


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
    for name, array in vars(some).items():
        assert array is None or np.array_equal(array, vars(whole)[name][[17, 2, 2, 9]]), name
    assert np.array_equal(cache[-1].values, whole.values[19])


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


def test_same_settings_give_the_same_bytes_another_seed_others(synthetic_cache: Path, tmp_path: Path) -> None:
    again = make_synthetic_cache(tmp_path / "again", **SIZES)
    other = make_synthetic_cache(tmp_path / "other", **SIZES, seed=1)
    files = [p.relative_to(again) for p in again.rglob("*") if p.is_file()]
    assert all((again / f).read_bytes() == (synthetic_cache / f).read_bytes() for f in files)
    key = "logits/ids/c/0/0/0"
    assert (other / key).read_bytes() != (again / key).read_bytes()


def test_rows_do_not_depend_on_the_shard_they_are_in(synthetic_cache: Path, tmp_path: Path) -> None:
    other = open_cache(make_synthetic_cache(tmp_path / "other", **{**SIZES, "rows_per_shard": 4})).rows(range(20))
    rows = open_cache(synthetic_cache).rows(range(20))
    assert np.array_equal(other.tokens, rows.tokens)
    assert np.array_equal(other.ids, rows.ids)


def test_cached_logits_are_the_head_applied_to_a_state(tmp_path: Path) -> None:
    """The Zipf channel and the embeddings the cache carries belong to its distributions: rank V, not noise."""
    cache = open_cache(
        make_synthetic_cache(tmp_path / "dense", **{**SIZES, "top_k": 300}, value_dtype="float32", dtype="float32")
    )
    rows = cache.rows(range(8))
    logits = np.zeros((8 * 12, 300), np.float32)
    np.put_along_axis(logits, rows.ids.reshape(-1, 300).astype(np.int64), rows.values.reshape(-1, 300), axis=1)
    head = load_file(cache.frozen_weights)["lm_head.weight"]
    states, *_ = np.linalg.lstsq(head, logits.T, rcond=None)
    assert np.abs(head @ states - logits.T).max() < 1e-3


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


def test_a_grown_cache_keeps_its_whole_shards(copy: Path, synthetic_cache: Path) -> None:
    whole = (copy / commit_key(0)).stat().st_mtime_ns
    make_synthetic_cache(copy, **{**SIZES, "rows": 30})
    grown, before = open_cache(copy), open_cache(synthetic_cache)
    assert (copy / commit_key(0)).stat().st_mtime_ns == whole
    assert np.array_equal(grown.rows(range(20)).ids, before.rows(range(20)).ids)
    assert len(grown) == 30


def test_other_settings_are_refused_by_name(copy: Path) -> None:
    with pytest.raises(UserError, match=r"targets\.top_k: the cache has 8, these settings give 9"):
        make_synthetic_cache(copy, **{**SIZES, "top_k": 9})


def test_a_folder_with_other_content_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other content; choose another --out"):
        make_synthetic_cache(tmp_path, **SIZES)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 301}, "--top-k 301: larger than --vocab-size 300"),
        ({"rows": 0}, "--rows 0: must be at least 1"),
    ],
)
def test_bad_sizes_are_one_line(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_synthetic_cache(tmp_path / "bad", **{**SIZES, **change})
    assert not (tmp_path / "bad").exists()
