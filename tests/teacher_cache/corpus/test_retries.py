"""Reading goes on at the same document after errors that pass, and names those that do not."""

import errno
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_common.errors import UserError
from teacher_cache.corpus import retries
from teacher_cache.corpus.documents import BEGINNING, Cursor, Document, Placed
from teacher_cache.corpus.files import file_reader
from teacher_cache.corpus.retries import PAUSES, may_pass, with_retries
from teacher_cache.settings import CorpusSettings


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", made.append)
    return made


@pytest.fixture
def remote() -> Iterator[str]:
    """A Parquet file that fsspec alone can open."""
    where = "memory://corpus/000_00000.parquet"
    table = pa.table({"text": [f"document {i} " + "x" * 200 for i in range(300)]})
    with fsspec.open(where, "wb") as file:
        pq.write_table(table, file, row_group_size=20, compression="none")
    yield where
    fsspec.filesystem("memory").rm("/corpus", recursive=True)


def test_a_remote_file_whose_reads_fail_now_and_then_gives_the_same_documents(
    remote: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = file_reader([remote, remote], "parquet", CorpusSettings(source="a/b"))
    expected = list(reader.read(BEGINNING))
    assert len(expected) == 600
    memory = fsspec.filesystem("memory").store["/corpus/000_00000.parquet"]
    read, reads = type(memory).read, itertools.count(1)

    def dropping(self: Any, *sizes: int) -> bytes:
        if next(reads) % 9 == 0:
            raise ConnectionError("peer closed connection")
        return read(self, *sizes)

    monkeypatch.setattr(type(memory), "read", dropping)
    assert list(with_retries(reader.read, BEGINNING, remote=True)) == expected
    assert pauses
    assert max(pauses) < 10


def breaking(error: Callable[[], Exception], at: int, times: int) -> Callable[[Cursor], Iterator[Placed]]:
    """Reads ten documents; the one at `at` raises so many times."""
    left = [times]

    def read(start: Cursor) -> Iterator[Placed]:
        for number in range(start.document, 10):
            if number == at and left[0]:
                left[0] -= 1
                cause = error()
                raise UserError(f"corpus: cannot be read: {cause}; remedy") from cause
            yield Cursor(document=number), Document(str(number), f"text {number}")

    return read


def status(code: int) -> Exception:
    error = RuntimeError(f"status {code}")
    error.response = SimpleNamespace(status_code=code)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("times", [1, len(PAUSES)])
def test_pauses_grow_until_it_works_again(times: int, pauses: list[float]) -> None:
    documents = list(with_retries(breaking(TimeoutError, 4, times), BEGINNING, remote=True))
    assert [document.id for _, document in documents] == [str(number) for number in range(10)]
    assert pauses == list(PAUSES[:times])


def test_after_three_minutes_the_error_is_named_with_the_document_and_the_tries(pauses: list[float]) -> None:
    documents = with_retries(breaking(lambda: status(503), 4, 99), BEGINNING, remote=True)
    assert len(list(itertools.islice(documents, 4))) == 4
    with pytest.raises(UserError, match=r"status 503; remedy \(tried 9 times in 181 s after document 3; the same"):
        next(documents)
    assert sum(pauses) == 181


def test_an_error_before_the_first_document_is_named_at_once(pauses: list[float]) -> None:
    with pytest.raises(UserError, match=r"remedy$"):
        next(with_retries(breaking(TimeoutError, 0, 1), BEGINNING, remote=True))
    assert not pauses


@pytest.mark.parametrize(
    ("error", "from_network", "from_disk"),
    [
        (TimeoutError(), True, False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True, True),
        (OSError(errno.EIO, "i/o error"), True, True),
        (OSError(errno.ESTALE, "stale file handle"), True, True),
        (OSError(errno.ENOENT, "no such file"), False, False),
        (OSError("Unexpected end of stream"), True, False),
        (status(500), True, False),
        (status(429), True, False),
        (status(404), False, False),
        (status(403), False, False),
        (ValueError("bad"), False, False),
        (KeyError("text"), False, False),
        (pa.ArrowInvalid("corrupt page"), False, False),
        (FileNotFoundError("gone"), False, False),
        (type("ReadError", (Exception,), {})("httpx"), True, False),
        (None, False, False),
    ],
    ids=repr,
)
def test_what_may_pass(error: Exception | None, from_network: bool, from_disk: bool) -> None:
    assert may_pass(error, remote=True) == from_network
    assert may_pass(error, remote=False) == from_disk


def test_a_document_that_is_another_after_the_connection_dropped_is_named(pauses: list[float]) -> None:
    readings = itertools.count()

    def read(start: Cursor) -> Iterator[Placed]:
        reading = next(readings)
        yield start, Document("a", f"text of reading {reading}")
        raise UserError("dropped") from TimeoutError()

    documents = with_retries(read, BEGINNING, remote=True)
    next(documents)
    with pytest.raises(UserError, match=r"document a: has changed since .* set corpus\.revision"):
        next(documents)
