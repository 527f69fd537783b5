"""Items made ahead by a thread: no more than asked for, errors passed on, and an end with their user."""

import threading
import time
from collections.abc import Generator

import pytest

from delta_common.background import Background


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Generator[None, None, None]:
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("background", "shards"))]


@pytest.mark.timeout(20)
def test_an_error_goes_before_batches_already_made() -> None:
    def two_then_an_error() -> Generator[int, None, None]:
        yield from range(2)
        raise ZeroDivisionError

    with Background(two_then_an_error(), 3) as items:
        time.sleep(0.2)
        with pytest.raises(ZeroDivisionError):
            next(items)


@pytest.mark.timeout(20)
def test_leaving_early_closes_the_generator_and_ends_its_thread() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.set()

    with pytest.raises(KeyboardInterrupt), Background(endless(), 3) as items:  # noqa: PT012
        assert [next(items) for _ in range(5)] == list(range(5))
        raise KeyboardInterrupt
    assert closed.is_set()


@pytest.mark.timeout(20)
def test_no_more_is_made_ahead_than_asked_for() -> None:
    made: list[int] = []

    def counting() -> Generator[int, None, None]:
        for number in range(100):
            made.append(number)
            yield number

    with Background(counting(), 3) as items:
        for taken in range(1, 6):
            next(items)
            time.sleep(0.05)
            assert len(made) <= taken + 3 + 1


@pytest.mark.timeout(20)
def test_items_come_in_order_and_end() -> None:
    with Background((number for number in range(10)), 2) as items:
        assert list(items) == list(range(10))
        with pytest.raises(StopIteration):
            next(items)
