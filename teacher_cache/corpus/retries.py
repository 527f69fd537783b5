"""Goes on reading after a dropped connection, at the document where it dropped."""

import errno
import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from delta_common.errors import UserError
from teacher_cache.corpus.documents import Cursor, Placed

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0)
"""Seconds to wait before each retry, 3 minutes in all. A document that arrives resets them."""

PASSING_ERRNOS = {
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
PASSING_STATUS = {408, 425, 429}
LASTING = (ValueError, TypeError, LookupError, ImportError, NotImplementedError, pa.ArrowException)


def with_retries(read: Callable[[Cursor], Iterator[Placed]], start: Cursor, *, remote: bool) -> Iterator[Placed]:
    """The documents that `read` gives from `start` on; after a passing error it continues behind the last one given.

    An error before the first document is raised at once: the name or the connection was never right.
    """
    last: Placed | None = None
    failures = 0
    while True:
        try:
            for placed in read(start) if last is None else _behind(read, last):
                last, failures = placed, 0
                yield placed
            return
        except UserError as error:
            if last is None or not may_pass(error.__cause__, remote=remote):
                raise
            if failures == len(PAUSES):
                waited = f"tried {failures + 1} times in {sum(PAUSES):.0f} s after document {last[0].document}"
                raise UserError(f"{error} ({waited}; the same command continues later)") from error
            time.sleep(PAUSES[failures])
            failures += 1


def _behind(read: Callable[[Cursor], Iterator[Placed]], last: Placed) -> Iterator[Placed]:
    cursor, document = last
    documents = read(cursor)
    again = next(documents, None)
    if again is None or again[1] != document:
        raise UserError(
            f"document {document.id}: has changed since the connection dropped; "
            "set corpus.revision, or leave the files alone while they are read"
        )
    yield from documents


def may_pass(error: BaseException | None, *, remote: bool) -> bool:
    """Whether a retry may help.

    From a network (`remote`) nearly every error may pass; from a disk only those by which a network disk says so.
    """
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING_ERRNOS
    if not remote:
        return False
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    if isinstance(status, int):
        return status in PASSING_STATUS or status >= 500
    return not isinstance(error, (*LASTING, FileNotFoundError, PermissionError, EOFError)) and not _is_offline(error)


def _is_offline(error: BaseException) -> bool:
    return type(error).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
