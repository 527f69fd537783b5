"""Encodes and writes a shard while the next is computed; its claim is held until its commit record is written."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, Self

from numpy.typing import NDArray

from teacher_cache.build.writer import CacheWriter
from teacher_cache.format.commits import CommitRecord


class ShardWrites:
    """Writes shards in a thread of its own, one at a time, so that at most two shards' arrays are in memory.

    A claim is released by the thread that took it, since locks belong to threads. Leaving the `with` block waits for
    the shard being written. If writing fails, the error is raised there, by `finish` or by `raise_failure`, whichever
    comes first.
    """

    def __init__(self, writer: CacheWriter, environment: Mapping[str, str]) -> None:
        self.shards = self.bytes = 0
        self._writer, self._environment = writer, environment
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard-writes")
        self._running: Future[CommitRecord] | None = None
        self._claim = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._thread:
            if kind is None:
                self.finish()
            elif self._running is not None:
                wait([self._running])
                self._claim.close()

    def start(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], statistics: Mapping[str, float], claim: ExitStack
    ) -> None:
        """Begin to write a shard; `claim` is closed when it is committed. Call `finish` before the next `start`."""
        self._claim = claim
        self._running = self._thread.submit(self._writer.write_shard, shard, arrays, statistics, self._environment)

    def raise_failure(self) -> None:
        """Raise the error of the write if it has failed; never waits."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the shard being written is committed."""
        running, self._running = self._running, None
        if running is None:
            return
        try:
            record = running.result()
        finally:
            wait([running])  # after an interrupt too, the claim is kept until the write ends
            self._claim.close()
        self.shards += 1
        self.bytes += sum(stored.bytes for stored in record.objects.values())
