"""Any damage to any object of a cache is detected, by verify and by reading."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from teacher_cache import open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.format.errors import CacheError
from teacher_cache.store.local import LocalStore
from teacher_cache.verify.objects import Findings, verify
from tests.helpers.damageable import SIZES

Restore = Callable[[], Path]


def objects(cache: Path) -> list[Path]:
    return sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file())


def read_everything(path: Path) -> None:
    cache = open_cache(path)
    for shard in cache.shards:
        cache.rows(shard)
    assert cache.frozen_weights.is_file()


def look(path: Path) -> Findings | None:
    """What verify finds; None where it refuses to call this a cache of a version it knows."""
    try:
        return verify(LocalStore(path))
    except CacheError:
        return None


def assert_detected(path: Path, words: str) -> None:
    findings = look(path)
    assert findings is None or not findings.is_sound, f"verify does not notice {words}"
    try:
        read_everything(path)
    except CacheError:
        return
    pytest.fail(f"reading does not notice {words}")


def test_a_sound_cache_is_sound(sound_cache: Path) -> None:
    findings = look(sound_cache)
    assert findings is not None
    assert findings.is_sound, findings.faults
    assert findings.shards_done == findings.shards_planned == 3
    assert findings.objects == len(objects(sound_cache))
    read_everything(sound_cache)


def flips(cache: Path, count: int, chance: random.Random) -> Iterator[tuple[Path, int]]:
    """Bits to flip: at least one of every object, the rest spread over objects evenly, not by size."""
    names = objects(cache)
    for number in range(max(count, len(names))):
        name = names[number % len(names)]
        yield name, chance.randrange(8 * (cache / name).stat().st_size)


@pytest.mark.timeout(3600)
def test_every_flipped_bit_is_detected(restored: Restore, request: pytest.FixtureRequest) -> None:
    path = restored()
    for name, bit in flips(path, request.config.getoption("--flips"), random.Random(11)):
        sound = (path / name).read_bytes()
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        assert_detected(path, f"bit {bit} of {name} flipped")
        (path / name).write_bytes(sound)
    read_everything(path)


def test_another_spelling_of_the_same_number_is_detected(restored: Restore) -> None:
    """0.1 + 0.2 has two spellings of 17 digits that differ in one bit and are one double."""
    path = restored()
    for name in ("commits/00000.json", "zarr.json"):
        sound = (path / name).read_text()
        number = next(n for n in re.findall(r"\d+\.\d{15,17}\b", sound) if respelled(n))
        (path / name).write_text(sound.replace(number, respelled(number) or "", 1))
        assert json.loads((path / name).read_text()) == json.loads(sound)
        assert_detected(path, f"{number} spelled {respelled(number)} in {name}")
        (path / name).write_text(sound)


def respelled(number: str) -> str | None:
    """The same double with another last digit or one more, if there is such a spelling."""
    spellings = (number[:-1] + digit for digit in "0123456789")
    longer = (number + digit for digit in "123456789")
    return next((s for s in (*spellings, *longer) if s != number and float(s) == float(number)), None)


def test_every_truncation_and_extension_is_detected(restored: Restore) -> None:
    path, chance = restored(), random.Random(12)
    for name in objects(path):
        sound = (path / name).read_bytes()
        for damaged in (b"", sound[:-1], sound[: chance.randrange(len(sound))], sound + b"\0"):
            (path / name).write_bytes(damaged)
            assert_detected(path, f"{name} of {len(damaged)} bytes instead of {len(sound)}")
        (path / name).write_bytes(sound)


def test_every_removal_is_detected(restored: Restore) -> None:
    path = restored()
    for name in objects(path):
        sound = (path / name).read_bytes()
        (path / name).unlink()
        assert_detected(path, f"{name} removed")
        (path / name).write_bytes(sound)


def test_an_object_in_the_place_of_another_is_detected(restored: Restore) -> None:
    """Duplication: one object copied over another; every object is the copy once and the original once."""
    path, chance = restored(), random.Random(13)
    names = objects(path)
    others = chance.sample(names, len(names))
    for name, other in zip(names, others, strict=True):
        sound, copied = (path / name).read_bytes(), (path / other).read_bytes()
        if sound == copied:
            continue
        (path / name).write_bytes(copied)
        assert_detected(path, f"{other} copied over {name}")
        (path / name).write_bytes(sound)


def test_two_objects_swapped_are_detected(restored: Restore) -> None:
    path, chance = restored(), random.Random(14)
    names = objects(path)
    pairs = [(f"commits/0000{a}.json", f"commits/0000{b}.json") for a, b in ((0, 1), (1, 2))]
    pairs += [("logits/ids/c/0/0/0", "logits/ids/c/1/0/0"), ("tokens/zarr.json", "loss_mask/zarr.json")]
    pairs += [(str(a), str(b)) for a, b in zip(chance.sample(names, 12), chance.sample(names, 12), strict=True)]
    for one, other in pairs:
        contents = (path / one).read_bytes(), (path / other).read_bytes()
        if contents[0] == contents[1]:
            continue
        (path / one).write_bytes(contents[1])
        (path / other).write_bytes(contents[0])
        assert_detected(path, f"{one} and {other} swapped")
        (path / one).write_bytes(contents[0])
        (path / other).write_bytes(contents[1])


def test_shards_of_a_cache_made_otherwise_are_detected(restored: Restore, tmp_path: Path) -> None:
    """Whole shards, records and all, copied from a cache of the same shape and another seed."""
    path = restored()
    other = make_synthetic_cache(tmp_path / "other", **SIZES, seed=1)
    for name in objects(other):
        if "/c/1/" in str(name) or name.name == "00001.json":
            shutil.copy(other / name, path / name)
    assert_detected(path, "a shard of another cache")


def test_a_stray_object_is_named_and_does_not_keep_the_cache_from_being_read(restored: Restore) -> None:
    path = restored()
    shutil.copy(path / "commits/00002.json", path / "commits/00007.json")
    findings = look(path)
    assert findings is not None
    assert [(fault.kind, fault.key) for fault in findings.faults] == [("stray", "commits/00007.json")]


def test_a_fault_names_its_shard_and_its_object(restored: Restore) -> None:
    path = restored()
    (path / "logits/values/c/1/0/0").unlink()
    with (path / "hidden/mean/c/2/0/0").open("r+b") as file:
        file.write(b"\xff")
    findings = look(path)
    assert findings is not None
    found = {(fault.kind, fault.key, fault.shard) for fault in findings.faults}
    assert found == {("missing", "logits/values/c/1/0/0", 1), ("digest", "hidden/mean/c/2/0/0", 2)}
    assert json.loads(json.dumps(findings.to_json()))["sound"] is False
