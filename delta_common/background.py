"""A generator that runs in a thread of its own, a limited number of items ahead of its consumer."""

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """The items of a generator, at most `ahead` of which are made before they are asked for.

    An error in the generator is raised by the next call of `next`, even if items are still waiting. Leaving the `with`
    block closes the generator and waits for its thread to end.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self._items, self._ahead = items, ahead
        self._made: deque[T] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._finished = self._left = False
        self._thread = threading.Thread(target=self._run, name="background")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._made or self._finished)
            if self._error is not None:
                raise self._error
            if not self._made:
                raise StopIteration
            self._changed.notify_all()
            return self._made.popleft()

    def _run(self) -> None:
        error = None
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._put(item):
                        break
        except BaseException as raised:  # of any kind: the consumer raises it
            error = raised
        with self._changed:
            self._error, self._finished = error, True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Hand over an item once there is room for it; return whether the consumer wants more."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._made) < self._ahead)
            self._made.append(item)
            self._changed.notify_all()
            return not self._left
