"""What hostile hands write: an error, never a crash, a write elsewhere, or code that runs.

The documents are valid up to one change anywhere, with digests and fingerprint made right again, as somebody
would who wants to be read.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.settings import TrainSettings
from teacher_cache import open_cache
from teacher_cache.format.commits import commit_key
from teacher_cache.format.errors import CacheError
from teacher_cache.format.sealed import canonical_json, digest
from teacher_cache.settings import BuildSettings
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.content import verify_bytes_and_content
from teacher_cache.verify.objects import verify
from tests.helpers import ROOT

Restore = Callable[[], Path]

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        ["../../outside", "/etc/passwd", "", "\0", "tokens", "!!python/object/apply:os.system [id]", "é" * 50]
    ),
    st.lists(st.integers(-3, 2**40), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, child in inner for place in places(child, (*path, key))]


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    document[place[-1]] = value


def seal_manifest(cache: Path, document: dict[str, Any]) -> None:
    content = {key: value for key, value in document["attributes"].items() if key != "fingerprint"}
    document["attributes"]["fingerprint"] = hashlib.sha256(canonical_json(content)).hexdigest()
    (cache / "zarr.json").write_text(json.dumps(document))


def use(cache: Path) -> None:
    """All that is done with a cache that somebody else gave."""
    for look in (verify, verify_bytes_and_content):
        with suppress(CacheError):
            look(LocalStore(cache))
    with suppress(CacheError, IndexError):
        opened = open_cache(cache)
        for shard in opened.shards:
            opened.rows(shard)
        assert opened.frozen_weights.is_file()


@pytest.fixture
def fenced(restored: Restore, tmp_path: Path) -> Restore:
    """A cache beside a file that nobody may touch."""
    (tmp_path / "outside").write_text("untouched")
    return restored


@FUZZ
@given(data=st.data())
def test_any_manifest(fenced: Restore, data: st.DataObject) -> None:
    cache = fenced()
    document = json.loads((cache / "zarr.json").read_text())
    put(document["attributes"], data.draw(st.sampled_from(places(document["attributes"]))), data.draw(VALUES))
    seal_manifest(cache, document)
    use(cache)
    assert (cache.parent / "outside").read_text() == "untouched"


@FUZZ
@given(data=st.data())
def test_any_array_metadata(fenced: Restore, data: st.DataObject) -> None:
    cache = fenced()
    key = data.draw(st.sampled_from(["logits/values/zarr.json", "tokens/zarr.json", "loss_mask/zarr.json"]))
    array = json.loads((cache / key).read_text())
    put(array, data.draw(st.sampled_from(places(array))), data.draw(VALUES))
    (cache / key).write_text(json.dumps(array))
    document = json.loads((cache / "zarr.json").read_text())
    document["attributes"]["files"][key] = digest((cache / key).read_bytes())
    seal_manifest(cache, document)
    use(cache)


@FUZZ
@given(data=st.data())
def test_any_commit_record(fenced: Restore, data: st.DataObject) -> None:
    cache = fenced()
    path = cache / commit_key(1)
    record = json.loads(path.read_text())
    del record["digest"]
    put(record, data.draw(st.sampled_from(places(record))), data.draw(VALUES))
    path.write_text(json.dumps({**record, "digest": digest(canonical_json(record))}))
    use(cache)
    assert (cache.parent / "outside").read_text() == "untouched"


@FUZZ
@given(data=st.data())
def test_any_bytes_in_a_shard(fenced: Restore, data: st.DataObject) -> None:
    """Damage inside chunks whose checksums, and whose digest in the record, have been made right again."""
    cache = fenced()
    key = data.draw(st.sampled_from(["logits/values/c/0/0/0", "logits/ids/c/0/0/0", "hidden/mean/c/0/0/0"]))
    shard = bytearray((cache / key).read_bytes())
    offset, length = struct.unpack("<QQ", shard[-20:-4])
    chunk = shard[offset : offset + length - 4]
    for _ in range(data.draw(st.integers(1, 4))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    shard[offset : offset + length] = chunk + struct.pack("<I", crc32c(bytes(chunk)))
    (cache / key).write_bytes(shard)
    path = cache / commit_key(0)
    record = json.loads(path.read_text())
    del record["digest"]
    record["objects"][key]["xxh3_128"] = digest(bytes(shard))
    path.write_text(json.dumps({**record, "digest": digest(canonical_json(record))}))
    use(cache)


@FUZZ
@given(noise=st.binary(max_size=200))
def test_any_bytes_for_a_document(fenced: Restore, noise: bytes) -> None:
    cache = fenced()
    for key in ("zarr.json", commit_key(0), "tokens/zarr.json"):
        sound = (cache / key).read_bytes()
        (cache / key).write_bytes(noise)
        use(cache)
        (cache / key).write_bytes(sound)


def test_a_document_nested_without_end(fenced: Restore) -> None:
    cache = fenced()
    for key in ("zarr.json", commit_key(0), "tokens/zarr.json"):
        (cache / key).write_text("[" * 200_000)
    use(cache)


TREES = st.recursive(
    VALUES,
    lambda inner: st.dictionaries(st.sampled_from(["teacher", "rows", "targets", "model", "x"]), inner),
    max_leaves=8,
)


@FUZZ
@given(tree=TREES, model=st.sampled_from([BuildSettings, TrainSettings]))
def test_any_settings(tmp_path: Path, tree: Any, model: Any) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(tree))
    with suppress(UserError):
        load_settings(model, path)


@FUZZ
@given(noise=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
def test_any_bytes_for_settings(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(noise)
    with suppress(UserError):
        load_settings(BuildSettings, path)


@pytest.mark.parametrize(
    "text",
    [
        "teacher: !!python/object/apply:os.system ['touch pwned']",
        "!!python/object/new:subprocess.Popen [['touch', 'pwned']]",
        "a: &a [x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)),
    ],
)
def test_settings_that_would_run_something_or_fill_memory(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_settings(BuildSettings, path)
    assert len(str(error.value)) < 2000
    assert not (tmp_path / "pwned").exists()


def test_nothing_here_unpickles() -> None:
    """torch.load without weights_only and pickle itself occur nowhere in the packages."""
    sources = [p for package in ("delta_common", "teacher_cache", "student") for p in (ROOT / package).rglob("*.py")]
    assert len(sources) > 40
    for path in sources:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "np.load(" not in text, path
        assert "torch.load(" not in text or "weights_only=True" in text, path


def test_an_array_of_objects_is_refused(restored: Restore) -> None:
    cache = restored()
    np.save(cache / "teacher/frozen.safetensors", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    shutil.move(cache / "teacher/frozen.safetensors.npy", cache / "teacher/frozen.safetensors")
    with pytest.raises(CacheError):
        use_frozen(cache)


def use_frozen(cache: Path) -> Path:
    return open_cache(cache).frozen_weights
