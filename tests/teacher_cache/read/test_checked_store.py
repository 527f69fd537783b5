import asyncio

import pytest
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import cpu, default_buffer_prototype
from zarr.storage import MemoryStore

from teacher_cache.format.commits import StoredObject
from teacher_cache.format.errors import CacheCorruptError
from teacher_cache.format.sealed import digest
from teacher_cache.read.checked_store import CheckedStore

DATA = bytes(range(100))
EXPECTED = {"a/c/0": StoredObject(bytes=100, xxh3_128=digest(DATA))}


class CountingStore(MemoryStore):
    """A store in memory that notes which parts were asked for."""

    asked: list[ByteRequest | None]

    async def get(self, key, prototype=None, byte_range=None):  # type: ignore[no-untyped-def]
        self.asked.append(byte_range)
        return await super().get(key, prototype, byte_range)


def store_of(data: bytes | None) -> CountingStore:
    store = CountingStore({} if data is None else {"a/c/0": cpu.Buffer.from_bytes(data)})
    store.asked = []
    return store


def get(checked: CheckedStore, key: str = "a/c/0", byte_range: ByteRequest | None = None) -> bytes | None:
    found = asyncio.run(checked.get(key, default_buffer_prototype(), byte_range))
    return None if found is None else found.to_bytes()


PARTS = [
    (RangeByteRequest(10, 20), DATA[10:20]),
    (OffsetByteRequest(90), DATA[90:]),
    (SuffixByteRequest(5), DATA[-5:]),
    (None, DATA),
]


@pytest.mark.parametrize(("byte_range", "part"), PARTS)
@pytest.mark.parametrize("digests", [True, False])
def test_a_sound_object_is_read_whole_and_in_parts(byte_range: ByteRequest | None, part: bytes, digests: bool) -> None:
    checked = CheckedStore(store_of(DATA), EXPECTED, where="here", digests=digests)
    for _ in range(3):
        assert get(checked, byte_range=byte_range) == part


def test_a_suffix_longer_than_the_object_is_all_of_it() -> None:
    """Of an object that was fetched whole; a store may answer such a request in its own way."""
    assert get(CheckedStore(store_of(DATA), EXPECTED, where="here"), byte_range=SuffixByteRequest(150)) == DATA


def test_an_object_is_fetched_whole_once_and_in_parts_after_another_was_read() -> None:
    store = store_of(DATA)
    checked = CheckedStore(store, EXPECTED, where="here")
    for _ in range(2):
        get(checked, byte_range=SuffixByteRequest(5))
    assert store.asked == [None], "an index, then chunks: one request"
    get(checked, "another")
    get(checked, byte_range=SuffixByteRequest(5))
    assert store.asked == [None, None, SuffixByteRequest(5)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "missing"),
        (DATA[:-1], "99 bytes instead of 100"),
        (DATA[:-1] + b"x", "its bytes are not those that were written"),
    ],
)
def test_a_damaged_object_is_named_every_time(data: bytes | None, said: str) -> None:
    checked = CheckedStore(store_of(data), EXPECTED, where="here")
    for byte_range in (None, SuffixByteRequest(5), SuffixByteRequest(5)):
        with pytest.raises(CacheCorruptError, match=rf"^here/a/c/0: {said}; teacher-cache repair"):
            get(checked, byte_range=byte_range)


def test_a_missing_object_is_no_zeros_even_unchecked_and_what_nobody_expects_may_be_missing() -> None:
    checked = CheckedStore(store_of(None), EXPECTED, where="here", digests=False)
    with pytest.raises(CacheCorruptError, match="here/a/c/0: missing"):
        get(checked)
    assert get(checked, "zarr.json") is None
