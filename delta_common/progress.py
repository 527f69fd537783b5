"""Progress of a long job: a live bar on a terminal, elsewhere a plain line every ten seconds."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressLine:
    """Shows units of work done out of a total, a few words, and the time left.

    The time left is estimated from the work of this process alone, so that a resumed job does not look faster than it
    is. Only one of several processes should be `shown`.
    """

    def __init__(self, title: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self._title, self._total, self._first, self._shown = title, total, done, shown
        self._started = time.monotonic()
        self._last_line = 0.0
        self._live: Progress | None = None
        console = Console(file=sys.stderr)
        if shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[words]}"),
            )
            self._live = Progress(*columns, console=console)
            self._task = self._live.add_task(title, total=total, completed=done, words="")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, words: str) -> None:
        """Show `done` of the total and some words; off a terminal at most every ten seconds, and at the end."""
        words = f"{done:,}/{self._total:,} {words} · {self._time_left(done)}"
        if self._live is not None:
            self._live.update(self._task, completed=done, words=words)
            return
        now = time.monotonic()
        if not self._shown:
            return
        if done >= self._total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self._title}: {words}", file=sys.stderr, flush=True)

    def _time_left(self, done: int) -> str:
        elapsed = time.monotonic() - self._started
        if done >= self._total:
            return f"took {duration(elapsed)}"
        if done <= self._first:
            return "time left unknown"
        return f"{duration(elapsed / (done - self._first) * (self._total - done))} left"


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 20 s`, `5 h 07 min`, `2 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def byte_size(count: float) -> str:
    """Bytes in words, with a binary unit: `812 B`, `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
