import errno

import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from delta_common.errors import UserError
from teacher_cache.store import failures
from teacher_cache.store.failures import BROKEN_BODY, TRIES, ask, explain, failures_named

S3, GS, AZ = "s3://bucket/cache", "gs://bucket/cache", "az://container/cache"


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        (S3, GenericError("<Code>NoSuchBucket</Code>"), "there is no such bucket; make it first, or correct the path"),
        (GS, GenericError("The specified bucket does not exist."), "there is no such bucket"),
        (AZ, GenericError("ContainerNotFound"), "there is no such bucket"),
        (S3, PermissionDeniedError("<Code>AccessDenied</Code>"), "refuses access (AccessDenied); check AWS_ACCESS_KEY"),
        (GS, UnauthenticatedError("no"), "refuses access; check GOOGLE_SERVICE_ACCOUNT"),
        (S3, GenericError("status code: 403 Forbidden"), "refuses access; check AWS_ACCESS_KEY_ID"),
        (AZ, GenericError("MissingAccount"), "refuses access; check AZURE_STORAGE_ACCOUNT_NAME"),
        (S3, GenericError("error 169.254.169.254 timed out"), "refuses access; check AWS_ACCESS_KEY_ID"),
        (S3, GenericError("BadScheme"), "plain http; give an https one, or set AWS_ALLOW_HTTP=true"),
        (GS, NotImplementedError(), "the store has no conditional puts"),
        (S3, GenericError("status code: 501"), "the store has no conditional puts"),
        (S3, GenericError("status code: 503 <Code>SlowDown</Code>"), "keeps answering 503 (SlowDown); run the same"),
        (S3, GenericError("status code: 429"), "keeps answering 429; run the same command again later"),
        (S3, GenericError("error sending request"), "cannot be reached or does not answer in time; check the network"),
        (AZ, GenericError("operation timed out"), "check the network and AZURE_ENDPOINT"),
        (S3, GenericError("odd\n thing\n\nDebug source: x"), "odd thing; check the path and the AWS_* variables"),
    ],
)
def test_each_failure_has_one_line_with_a_remedy(where: str, error: Exception, said: str) -> None:
    line = explain(where, error)
    assert line.startswith(f"{where}: ")
    assert said in line
    assert "\n" not in line


def test_a_missing_object_is_a_missing_file_but_a_missing_bucket_is_not() -> None:
    with pytest.raises(FileNotFoundError) as caught, failures_named(f"{S3}/key"):
        raise FileNotFoundError("NoSuchKey")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, f"{S3}/key")
    with pytest.raises(UserError, match="no such bucket"), failures_named(f"{S3}/key"):
        raise FileNotFoundError("<Code>NoSuchBucket</Code>")


@pytest.mark.parametrize("answer", [AlreadyExistsError("there"), PreconditionError("changed")])
def test_a_failed_condition_is_an_answer(answer: Exception) -> None:
    with pytest.raises(type(answer)), failures_named(S3):
        raise answer


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), failures_named(S3):
        _ = 1 // 0


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, of no length."""
    made: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", made.append)
    return made


def test_an_answer_that_breaks_off_is_asked_for_again(pauses: list[float]) -> None:
    left: list[object] = [GenericError(BROKEN_BODY), GenericError(BROKEN_BODY), "at last"]

    def request() -> object:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ask(S3, request) == "at last"
    assert pauses == sorted(pauses)
    assert len(pauses) == 2


@pytest.mark.parametrize(("error", "requests"), [(GenericError(BROKEN_BODY), TRIES), (GenericError("odd"), 1)])
def test_asking_again_has_an_end_and_other_failures_are_not_asked_again(
    error: Exception, requests: int, pauses: list[float]
) -> None:
    asked = []

    def request() -> None:
        asked.append(1)
        raise error

    with pytest.raises(UserError, match=f"^{S3}: "):
        ask(S3, request)
    assert len(asked) == requests
