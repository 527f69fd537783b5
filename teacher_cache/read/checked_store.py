"""The store Zarr reads a cache through: checks every object against its commit record when it is first read."""

from collections.abc import Mapping

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import WrapperStore

from teacher_cache.format.commits import StoredObject
from teacher_cache.format.errors import REPAIR, CacheCorruptError
from teacher_cache.format.sealed import digest


class CheckedStore(WrapperStore[Store]):
    """A read-only store that checks objects against `expected`, so that a missing one is never read as zeros.

    The first read of an object fetches it whole and checks its digest; later reads fetch only the parts asked for.
    """

    def __init__(self, store: Store, expected: Mapping[str, StoredObject], *, where: str, digests: bool = True) -> None:
        super().__init__(store)
        self._expected = expected
        self._where = where
        self._unchecked = set(expected) if digests else set()
        self._in_parts: tuple[str, Buffer] | None = None

    def _with_store(self, store: Store) -> "CheckedStore":
        return CheckedStore(store, self._expected, where=self._where, digests=bool(self._unchecked))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of an object; raises `CacheCorruptError` where it is missing or is not what was committed."""
        if byte_range is not None and self._in_parts is not None and self._in_parts[0] == key:
            return _part(self._in_parts[1], byte_range)
        self._in_parts = None
        if key not in self._unchecked:
            found = await self._store.get(key, prototype, byte_range)
            if found is None and key in self._expected:
                raise CacheCorruptError(f"{self._where}/{key}: missing; {REPAIR}")
            return found
        whole = await self._store.get(key, prototype)
        self.check(key, None if whole is None else whole.as_buffer_like())
        assert whole is not None
        if byte_range is None:
            return whole
        self._in_parts = (key, whole)  # Zarr asks for the shard index first, then for chunks
        return _part(whole, byte_range)

    def check(self, key: str, whole: bytes | bytearray | memoryview | None) -> None:
        """Raise `CacheCorruptError` where an object that was read whole is missing or, the first time, is damaged."""
        stored = self._expected[key]
        if whole is None:
            raise CacheCorruptError(f"{self._where}/{key}: missing; {REPAIR}")
        if key not in self._unchecked:
            return
        if len(whole) != stored.bytes:
            raise CacheCorruptError(f"{self._where}/{key}: {len(whole)} bytes instead of {stored.bytes}; {REPAIR}")
        if digest(whole) != stored.xxh3_128:
            raise CacheCorruptError(f"{self._where}/{key}: its bytes are not those that were written; {REPAIR}")
        self._unchecked.discard(key)


def _part(whole: Buffer, byte_range: ByteRequest) -> Buffer:
    if isinstance(byte_range, RangeByteRequest):
        return whole[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return whole[byte_range.offset :]
    assert isinstance(byte_range, SuffixByteRequest)
    return whole[max(0, len(whole) - byte_range.suffix) :]
