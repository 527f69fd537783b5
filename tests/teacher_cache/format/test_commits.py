import json
from typing import Any

import pytest

from teacher_cache.format.commits import (
    CommitRecord,
    claimed_identity,
    commit_key,
    covers,
    mean_statistics,
    parse_commit,
)
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.format.sealed import seal
from tests.helpers.golden import KINDS, changed, golden_cache, golden_manifest

KEY = commit_key(1)


def golden_record(kind: str = "sampled", shard: int = 1) -> CommitRecord:
    data = (golden_cache(kind) / commit_key(shard)).read_bytes()
    return parse_commit(data, commit_key(shard), golden_manifest(kind), "here")


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_written_again_has_the_same_bytes(kind: str) -> None:
    for shard in (0, 1):
        record = golden_record(kind, shard)
        assert seal(record) == (golden_cache(kind) / commit_key(shard)).read_bytes()
        assert (record.shard, record.first_row) == (shard, 4 * shard)


def refuse(data: bytes, said: str) -> None:
    with pytest.raises(CacheCorruptError, match=rf"^here: {said}.*; teacher-cache repair"):
        parse_commit(data, KEY, golden_manifest("sampled"), "here")


def test_a_record_that_is_not_intact_is_refused() -> None:
    data = seal(golden_record())
    refuse(data[:-1], "not a commit record: its JSON is malformed")
    content: dict[str, Any] = json.loads(data)
    refuse(json.dumps({**content, "rows": 3}).encode(), "not a commit record: it does not match its own digest")
    del content["positions"]
    refuse(json.dumps(content).encode(), "not a commit record: its JSON is malformed")


def test_an_intact_record_of_something_else_is_refused() -> None:
    record = golden_record()
    refuse(seal(record.model_copy(update={"identity": "0"})), "belongs to a cache made with other settings")
    refuse(seal(golden_record(shard=0)), "is the record of shard 0")
    fewer = dict(list(record.objects.items())[1:])
    refuse(seal(record.model_copy(update={"objects": fewer})), "lists other objects than a shard of this cache has")


def test_only_an_intact_record_claims_an_identity() -> None:
    data = seal(golden_record())
    assert claimed_identity(data) == golden_manifest("sampled").identity
    assert claimed_identity(data.replace(b'"shard": 1', b'"shard": 0')) is None


def test_a_shard_counts_while_the_cache_has_its_rows() -> None:
    manifest, record = golden_manifest("sampled"), golden_record()
    assert covers(record, manifest)
    assert not covers(record, changed(manifest, "rows", count=6))
    assert not covers(record, changed(manifest, "rows", count=4))
    nothing = record.model_copy(update={"rows": 0})
    assert not covers(nothing, changed(manifest, "rows", count=4)), "there is no such shard"
    assert covers(golden_record(shard=0), changed(manifest, "rows", count=400))


def test_means_are_over_positions_and_not_over_shards() -> None:
    shards = [
        golden_record().model_copy(update={"positions": positions, "statistics": {"entropy@1": total}})
        for positions, total in ((1, 4.0), (3, 0.0))
    ]
    assert mean_statistics(shards) == {"entropy@1": 1.0}
    assert mean_statistics([]) == {}
    assert mean_statistics([shards[0].model_copy(update={"positions": 0})]) == {}
