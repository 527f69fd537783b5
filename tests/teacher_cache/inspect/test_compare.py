"""Two caches side by side: what is equal, what differs and by how much."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.inspect.compare import compare_caches, position_distances, render_comparison
from teacher_cache.inspect.entries import RowEntries
from tests.helpers.layouts import keep, layout, zipf_logits
from tests.helpers.object_server import BUCKET, Proxy

SIZES: dict[str, Any] = {"rows": 10, "seq_len": 16, "vocab_size": 300, "hidden_size": 16, "rows_per_shard": 4}
SAMPLED = {"top_k": 6, "samples": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def sampled(folder: Path) -> Cache:
    return open_cache(make_synthetic_cache(folder / "sampled", **SIZES, **SAMPLED))


def other(folder: Path, name: str, **sizes: Any) -> Cache:
    return open_cache(make_synthetic_cache(folder / name, **{**SIZES, **SAMPLED, **sizes}))


def words(compared: dict[str, Any]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_comparison(compared))
    return captured.get()


def test_a_cache_is_equal_to_itself(sampled: Cache) -> None:
    compared = json.loads(json.dumps(compare_caches(sampled, sampled)))
    assert compared["settings"] == {}
    content = compared["content"]
    assert content["equal_tokens"] == content["common_rows"] == 10
    assert all(equal == total == 3 for equal, total in content["equal_objects"].values())
    found = content["distributions"]
    assert (found["rows"], found["positions"], found["agreement"]) == (10, 160, 1.0)
    assert found["total_variation"] == found["kl"] == found["largest_value_difference"] == 0
    assert "settings are the same" in words(compared)


def test_other_sizes_of_the_same_distributions_are_close(sampled: Cache, folder: Path) -> None:
    compared = compare_caches(sampled, other(folder, "top", top_k=40, samples=0))
    assert compared["settings"]["targets.top_k"] == [6, 40]
    assert compared["settings"]["targets.samples"] == [20, 0]
    content = compared["content"]
    assert content["equal_objects"]["tokens"] == [3, 3]
    assert content["equal_objects"]["logits/ids"][0] == 0
    found = content["distributions"]
    assert found["agreement"] == 1.0
    assert found["largest_value_difference"] == 0
    assert found["total_variation"] < 1e-3
    assert 6 <= found["common_entries"] <= 26
    assert "targets.top_k" in words(compared)


def test_an_exact_cache_and_a_sparse_one_are_close(sampled: Cache, folder: Path) -> None:
    exact = other(folder, "exact", top_k=1, samples=0, mode="exact", dtype="float32")
    sparse = other(folder, "float32", dtype="float32")
    for one, two in ((exact, sparse), (sparse, exact)):
        found = compare_caches(one, two)["content"]["distributions"]
        assert found["total_variation"] < 2e-3
        assert found["agreement"] == 1.0
        assert found["largest_value_difference"] < 0.01
    assert compare_caches(exact, sampled)["content"]["equal_objects"].keys() >= {"tokens", "loss_mask"}


def test_other_teachers_have_other_rows(sampled: Cache, folder: Path) -> None:
    compared = compare_caches(sampled, other(folder, "seed", seed=1))
    assert compared["content"]["equal_tokens"] == 0
    assert compared["content"]["distributions"] is None
    assert "not compared: no row has equal tokens" in words(compared)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [({"vocab_size": 301}, "their tokenizers differ"), ({"seq_len": 12}, "their rows differ in length: 16 and 12")],
)
def test_what_cannot_be_compared_is_said(sampled: Cache, folder: Path, sizes: dict[str, int], reason: str) -> None:
    compared = compare_caches(sampled, other(folder, f"other{sizes}", **sizes))
    assert compared["not_compared"].startswith(reason)
    assert compared["content"] is None
    assert reason in words(compared)


def test_unfinished_and_longer_caches_are_compared_as_far_as_both_go(sampled: Cache, folder: Path) -> None:
    longer = other(folder, "longer", rows=30, rows_per_shard=8)
    part = Cache(longer.store, longer.manifest, {0: longer.commits[0]})
    content = compare_caches(sampled, part)["content"]
    assert content["common_rows"] == content["equal_tokens"] == 8
    assert content["equal_objects"]["tokens"] == [0, 0]
    empty = compare_caches(sampled, Cache(longer.store, longer.manifest, {}))
    assert empty["content"]["common_rows"] == 0
    assert "objects are not compared" in words(empty)


def test_distances_are_those_of_the_definition() -> None:
    """Against all logits: two top-k accounts of other distributions, by hand over what both keep."""
    kept_layout = layout(12)
    logits = [zipf_logits(50, 60, seed) for seed in (3, 4)]
    kept = [keep(z, kept_layout) for z in logits]
    a, b = (RowEntries(k.ids.long(), k.values, k.log_mass, kept_layout) for k in kept)
    found = position_distances(a, b, 60, 1.0)
    p, q = (torch.softmax(z.double(), -1) for z in logits)
    for t in range(50):
        common = sorted(set(a.ids[t].tolist()) & set(b.ids[t].tolist()))
        one = torch.cat([p[t, common], 1 - p[t, common].sum(0, keepdim=True)])
        two = torch.cat([q[t, common], 1 - q[t, common].sum(0, keepdim=True)])
        assert float(found["total_variation"][t]) == pytest.approx(float((one - two).abs().sum() / 2), abs=1e-4)
        assert float(found["kl"][t]) == pytest.approx(float((one * (one / two).log()).sum()), abs=1e-3)
        assert int(found["common_entries"][t]) == len(common)
        assert float(found["total_variation"][t]) <= float((p[t] - q[t]).abs().sum() / 2) + 1e-4
    largest = max(
        float((logits[0][t, i] - logits[1][t, i]).abs())
        for t in range(50)
        for i in set(a.ids[t].tolist()) & set(b.ids[t].tolist())
    )
    assert float(found["value_difference"].max()) == pytest.approx(largest, abs=1e-5)


def test_caches_in_an_object_store_are_compared_as_local_ones_are(sampled: Cache, s3: Proxy) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}/cache"
    make_synthetic_cache(url, **SIZES, **SAMPLED)
    here, there = compare_caches(sampled, sampled), compare_caches(sampled, open_cache(url))
    assert there["b"]["path"] == url
    assert (there["settings"], there["content"]) == (here["settings"], here["content"])


def test_damaged_tokens_are_named_and_not_compared(sampled: Cache, folder: Path) -> None:
    damaged = other(folder, "damaged")
    path = Path(damaged.path) / "tokens/c/1/0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorruptError, match="tokens/c/1/0: its bytes are not those that were written"):
        compare_caches(sampled, damaged)
