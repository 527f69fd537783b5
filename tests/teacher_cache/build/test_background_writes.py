"""One shard is written at a time, in the background; its claim is let go when it is committed or has failed."""

import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from teacher_cache.build.background_writes import ShardWrites
from teacher_cache.build.writer import CacheWriter


class Writer:
    """Writes when it is let, and notes which thread did."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_write, self.threads, self.error = threading.Event(), list[str](), error

    def write_shard(self, shard: int, *_: Any) -> Any:
        assert self.may_write.wait(20)
        self.threads.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(objects={"a": SimpleNamespace(bytes=3), "b": SimpleNamespace(bytes=4 + shard)})


def claim(log: list[str], name: str) -> ExitStack:
    stack = ExitStack()
    stack.callback(log.append, name)
    return stack


def test_a_claim_is_let_go_after_the_write_and_bytes_are_counted() -> None:
    writer, log = Writer(), list[str]()
    with ShardWrites(cast(CacheWriter, writer), {}) as writes:
        writes.start(0, {}, {}, claim(log, "first"))
        writes.raise_failure()
        assert log == []
        writer.may_write.set()
        writes.finish()
        assert log == ["first"]
        writes.start(1, {}, {}, claim(log, "second"))
    assert log == ["first", "second"]
    assert (writes.shards, writes.bytes) == (2, 7 + 8)
    assert all(name.startswith("shard-writes") for name in writer.threads)


def test_an_error_of_a_write_is_raised_and_its_claim_let_go() -> None:
    writer, log = Writer(OSError("disk")), list[str]()
    writer.may_write.set()

    def write() -> None:
        with ShardWrites(cast(CacheWriter, writer), {}) as writes:
            writes.start(0, {}, {}, claim(log, "claim"))
            writes.finish()

    with pytest.raises(OSError, match="disk"):
        write()
    assert log == ["claim"]


def test_an_error_of_the_work_beside_waits_for_the_write_and_goes_before_its_own() -> None:
    writer, log = Writer(OSError("disk")), list[str]()

    def interrupted() -> None:
        with ShardWrites(cast(CacheWriter, writer), {}) as writes:
            writes.start(0, {}, {}, claim(log, "claim"))
            threading.Timer(0.1, writer.may_write.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert log == ["claim"]
