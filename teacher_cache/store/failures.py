"""Errors of object stores as one line that says what is wrong and what to do."""

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from delta_common.errors import UserError

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_ENDPOINT"}
PREFIXES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}

NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
NO_CREDENTIALS = re.compile(r"status code: 40[13]\b|169\.254\.169\.254|ExpiredToken|InvalidToken|MissingAccount")
NOT_SUPPORTED = re.compile(r"status code: 501\b|<Code>NotImplemented")
NO_ANSWER = re.compile("error sending request|body error|operation timed out")
SERVER_ERROR = re.compile(r"status code: (429|5\d\d)\b")

BROKEN_BODY = "request or response body error"
TRIES = 5

CONDITIONAL_PUT = (
    "the store has no conditional puts, without which two builders could spoil each other's work; "
    "build into a local folder and copy it there"
)

AnswerT = TypeVar("AnswerT")


@contextmanager
def failures_named(where: str) -> Iterator[None]:
    """Turn obstore's errors into a `UserError` about `where`, and a missing object into `FileNotFoundError`.

    Failed conditions (`AlreadyExistsError`, `PreconditionError`) pass unchanged: callers expect them.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if NO_BUCKET.search(str(error)):
            raise UserError(explain(where, error)) from error
        raise FileNotFoundError(errno.ENOENT, "no such object", where) from error
    except (BaseError, NotImplementedError, OSError) as error:
        raise UserError(explain(where, error)) from error


def ask(where: str, request: Callable[[], AnswerT]) -> AnswerT:
    """The result of a request about `where`; raises what `failures_named` raises.

    obstore itself retries server errors, timeouts and dropped connections. This function retries what obstore does
    not: listings and error responses whose body breaks off. So a request may reach the server twice.
    """
    broken = 0
    while True:
        try:
            with failures_named(where):
                return request()
        except UserError as error:
            broken += 1
            if BROKEN_BODY not in str(error.__cause__) or broken == TRIES:
                raise
            time.sleep(0.05 * 2**broken)


def explain(where: str, error: Exception) -> str:
    """One line about an error of the store, with a remedy; `where` is the URL of an object or of the cache."""
    said, scheme = str(error), where.partition(":")[0]
    if NO_BUCKET.search(said):
        return f"{where}: there is no such bucket; make it first, or correct the path"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or NO_CREDENTIALS.search(said):
        return f"{where}: the store refuses access{_code(said)}; check {CREDENTIALS[scheme]}, and their permissions"
    if "BadScheme" in said:
        return f"{where}: the endpoint is plain http; give an https one, or set {PREFIXES[scheme]}_ALLOW_HTTP=true"
    if isinstance(error, NotImplementedError) or NOT_SUPPORTED.search(said):
        return f"{where}: {CONDITIONAL_PUT}"
    if found := SERVER_ERROR.search(said):
        return f"{where}: the store keeps answering {found[1]}{_code(said)}; run the same command again later"
    if NO_ANSWER.search(said):
        remedy = f"check the network and {ENDPOINTS[scheme]}, then run the same command again"
        return f"{where}: the store cannot be reached or does not answer in time; {remedy}"
    return f"{where}: {_first_line(said)}; check the path and the {PREFIXES[scheme]}_* variables"


def _code(said: str) -> str:
    found = re.search("<Code>(.*?)</Code>", said)
    return f" ({found[1]})" if found else ""


def _first_line(said: str) -> str:
    return " ".join(said.partition("\n\nDebug source")[0].split())[:300]
