import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from teacher_cache.format.arrays import array_specs
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.format.keys import metadata_key
from teacher_cache.store.local import LocalStore
from teacher_cache.store.metadata import array_problem, check_metadata, is_intact, read_listed, read_manifest
from tests.helpers.golden import KINDS, golden_cache, golden_manifest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A golden cache to damage."""
    return Path(shutil.copytree(golden_cache("sampled"), tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_metadata_is_sound(kind: str) -> None:
    store = LocalStore(golden_cache(kind))
    manifest = read_manifest(store)
    assert manifest == golden_manifest(kind)
    check_metadata(store, manifest)
    assert is_intact(store, manifest)


def test_a_folder_without_a_group_has_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(LocalStore(tmp_path)) is None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "its zarr.json is not JSON"),
        ("[]", "a Zarr group, but not a teacher cache"),
        ('{"attributes": 3}', "a Zarr group, but not a teacher cache"),
    ],
)
def test_a_group_of_nonsense_is_named(tmp_path: Path, document: str, said: str) -> None:
    (tmp_path / "zarr.json").write_text(document)
    with pytest.raises(ValueError, match=said):
        read_manifest(LocalStore(tmp_path))


def test_a_manifest_in_something_else_than_a_group_is_refused(copy: Path) -> None:
    document = json.loads((copy / "zarr.json").read_text())
    (copy / "zarr.json").write_text(json.dumps({**document, "node_type": "array"}))
    with pytest.raises(CacheCorruptError, match="describes something other than a group"):
        read_manifest(LocalStore(copy))


@pytest.mark.parametrize("key", ["tokens/zarr.json", "logits/zarr.json", "teacher/frozen.safetensors"])
def test_what_the_manifest_lists_must_be_there_as_it_was_written(copy: Path, key: str) -> None:
    store, manifest = LocalStore(copy), golden_manifest("sampled")
    assert read_listed(store, manifest, key) == (copy / key).read_bytes()
    (copy / key).write_bytes((copy / key).read_bytes() + b" ")
    assert not is_intact(store, manifest)
    with pytest.raises(CacheCorruptError, match=f"{key}: its bytes are not those that were written"):
        read_listed(store, manifest, key)
    (copy / key).unlink()
    assert not is_intact(store, manifest)
    with pytest.raises(CacheCorruptError, match=f"{key}: missing"):
        read_listed(store, manifest, key)
    if key.endswith("zarr.json"):
        with pytest.raises(CacheCorruptError, match=f"{key}: missing"):
            check_metadata(store, manifest)


def test_what_the_manifest_does_not_list_is_not_read(copy: Path) -> None:
    (copy / "further").write_bytes(b"x")
    with pytest.raises(CacheCorruptError, match="further: the manifest does not list it"):
        read_listed(LocalStore(copy), golden_manifest("sampled"), "further")


def changed_at(document: dict[str, Any], *path: str | int, value: object) -> bytes:
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document).encode()


INNER = ("codecs", 0, "configuration")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("shape",), [5, 6, 8], r"shape is \[5, 6, 8\], the manifest says \[5, 6, 9\]"),
        (("data_type",), "int64", "data_type is 'int64', the manifest says 'uint32'"),
        (("node_type",), "group", "node_type is 'group'"),
        (("chunk_key_encoding", "configuration", "separator"), ".", "chunk_key_encoding"),
        (("chunk_grid", "configuration", "chunk_shape"), [2, 6, 9], "chunk_grid"),
        (("codecs",), [], "codecs are not those of docs/format.md"),
        (("codecs",), None, "codecs are not those of docs/format.md"),
        ((*INNER, "chunk_shape"), [1, 6, 9], "codecs are .*, docs/format.md says"),
        ((*INNER, "index_location"), "start", "codecs are .*, docs/format.md says"),
        ((*INNER, "codecs", 0, "name"), "pickle", "codecs are .*, docs/format.md says"),
        ((*INNER, "index_codecs"), "nonsense", "codecs are not those of docs/format.md"),
    ],
)
def test_an_array_that_is_not_as_the_manifest_says_is_named(
    path: tuple[str | int, ...], value: object, said: str
) -> None:
    manifest = golden_manifest("sampled")
    spec = next(spec for spec in array_specs(manifest) if spec.name == "logits/ids")
    document = json.loads((golden_cache("sampled") / metadata_key(spec.name)).read_text())
    assert array_problem(json.dumps(document).encode(), spec, manifest) is None
    found = array_problem(changed_at(document, *path, value=value), spec, manifest)
    assert found is not None
    assert re.search(said, found)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff"])
def test_metadata_of_nonsense_is_a_problem_and_no_crash(data: bytes) -> None:
    manifest = golden_manifest("sampled")
    assert array_problem(data, array_specs(manifest)[0], manifest) is not None
