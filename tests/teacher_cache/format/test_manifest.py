import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from delta_common.logits.transform import LogitTransform
from teacher_cache.format.errors import CacheCorruptError, CacheFormatError
from teacher_cache.format.manifest import KNOWN_VERSIONS, HiddenLayout, RowLayout, TargetLayout, parse_manifest
from tests.helpers.golden import KINDS, changed, golden_attributes, golden_manifest


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_read_as_they_were_written(kind: str) -> None:
    manifest = golden_manifest(kind)
    assert manifest.attributes() == golden_attributes(kind)
    content = {key: value for key, value in golden_attributes(kind).items() if key != "fingerprint"}
    spelled = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert manifest.fingerprint == hashlib.sha256(spelled).hexdigest()


def test_the_last_shard_may_be_shorter() -> None:
    manifest = golden_manifest("sampled")
    assert manifest.shard_count == 2
    assert [manifest.shard_rows(shard) for shard in range(2)] == [range(4), range(4, 5)]


def test_a_longer_cache_is_the_same_and_other_content_is_another() -> None:
    manifest = golden_manifest("sampled")
    files = {**manifest.files, "tokens/zarr.json": "0"}
    longer = changed(manifest, "rows", count=500).model_copy(update={"files": files})
    assert longer.fingerprint != manifest.fingerprint
    assert longer.identity == manifest.identity
    others = [
        changed(manifest, "targets", seed=1),
        changed(manifest, "rows", seq_len=7),
        changed(manifest, "teacher", weights_sha256="0"),
        manifest.model_copy(update={"files": {**manifest.files, "teacher/frozen.safetensors": "0"}}),
    ]
    assert len({manifest.identity, *(other.identity for other in others)}) == 5


def test_what_lies_behind_the_head_reads_as_written_and_is_left_out_where_there_is_nothing() -> None:
    plain = golden_manifest("sampled")
    capped = changed(plain, "teacher", logit_transform=LogitTransform(scale=0.5, cap=30.0))
    assert "logit_transform" not in plain.attributes()["teacher"]
    assert capped.attributes()["teacher"]["logit_transform"] == {"scale": 0.5, "cap": 30.0}
    assert parse_manifest(capped.attributes(), "here") == capped
    packed = changed(plain, "teacher", quantization="fp8")
    assert "quantization" not in plain.attributes()["teacher"]
    assert parse_manifest(packed.attributes(), "here").teacher.quantization == "fp8"
    assert capped.identity != plain.identity


def test_a_newer_format_names_both_versions() -> None:
    with pytest.raises(CacheFormatError, match="version 99, this package reads 1 and 2; update"):
        parse_manifest({"format": "teacher-cache", "format_version": 99}, "here")


def test_an_older_format_is_to_be_rebuilt() -> None:
    with pytest.raises(CacheFormatError, match="version 0, this package reads 1 and 2; rebuild the cache"):
        parse_manifest({"format": "teacher-cache", "format_version": 0}, "here")


def test_a_version_is_part_of_what_a_cache_is() -> None:
    manifest = golden_manifest("sampled")
    assert manifest.in_version(1) == manifest
    assert len({manifest.in_version(version).identity for version in KNOWN_VERSIONS}) == len(KNOWN_VERSIONS)


def test_another_zarr_group_is_no_cache() -> None:
    with pytest.raises(CacheFormatError, match="here: a Zarr group, but not a teacher cache"):
        parse_manifest({"something": 1}, "here")


def damaged(*path: str, value: Any) -> dict[str, Any]:
    attributes = golden_attributes("sampled")
    place = attributes
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return attributes


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (damaged("rows", "seq_len", value="six"), r"manifest key rows\.seq_len"),
        (damaged("rows", "further", value=1), r"manifest key rows\.further"),
        (damaged("files", value={"../../.bashrc": "0"}), r"'../../\.bashrc' is not a valid key"),
        (damaged("teacher", "revision", value="another"), "does not match its fingerprint"),
        (damaged("fingerprint", value=None), "does not match its fingerprint"),
    ],
)
def test_a_damaged_manifest_names_the_key_and_the_remedy(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(CacheCorruptError, match=rf"^here: .*{said}.*; teacher-cache repair"):
        parse_manifest(attributes, "here")


ROWS = {"mode": "packed", "context": "row", "seq_len": 4, "count": 8, "rows_per_shard": 4, "rows_per_chunk": 2}
TARGETS = golden_manifest("sampled").targets.model_dump()


@pytest.mark.parametrize(
    ("model", "content", "said"),
    [
        (RowLayout, {**ROWS, "count": 0}, "sizes must be at least 1"),
        (RowLayout, {**ROWS, "rows_per_chunk": 3}, "rows_per_shard must be a multiple of rows_per_chunk"),
        (TargetLayout, {**TARGETS, "top_k": 0}, "top_k must be at least 1"),
        (TargetLayout, {**TARGETS, "node_temperatures": (1.0,)}, "two positive node temperatures"),
        (TargetLayout, {**TARGETS, "node_temperatures": (1.0, 0.0)}, "two positive node temperatures"),
        (TargetLayout, {**TARGETS, "proposal": ((1.0, 0.9),)}, "shares must sum to 1"),
    ],
)
def test_a_layout_that_cannot_be_decoded_is_refused(
    model: type[RowLayout | TargetLayout], content: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        model.model_validate(content)


def test_kept_positions_begin_with_the_first() -> None:
    for stride in (1, 2, 3, 5, 9):
        assert HiddenLayout(mean="int8", stride=stride).positions(8) == len(range(0, 8, stride))


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        golden_manifest("top").alignment = "another"  # type: ignore[misc]
