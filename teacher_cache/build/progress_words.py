"""The progress line of a build."""

import os
import time

from delta_common.machine.matrix_work import MatrixWork
from delta_common.progress import ProgressLine, byte_size
from teacher_cache.format.manifest import Manifest


class BuildProgress:
    """Counts rows, positions and bytes, and says them on the progress line; `pending` are the shards still to build.

    With `work`, the teacher's, the line says what share of its device's matrix peak it uses.
    """

    def __init__(self, manifest: Manifest, pending: list[int], work: MatrixWork | None = None) -> None:
        self._total, self._seq_len, self._work = manifest.rows.count, manifest.seq_len, work
        self._done = self._total - sum(len(manifest.shard_rows(shard)) for shard in pending)
        self._rows, self._positions, self._started = 0, 0, time.monotonic()
        shown = os.environ.get("RANK", "0") == "0"
        self.line = ProgressLine("build", total=self._total, done=self._done, shown=shown)

    def pass_over(self, rows: int) -> None:
        """Count rows that another process computes."""
        self._done += rows

    def add(self, rows: int, positions: int, written: int) -> None:
        """Count rows that were computed and their counted positions; `written` is the bytes written so far."""
        self._done += rows
        self._rows += rows
        self._positions += positions
        if self._done < self._total:
            self._show(written)

    def end(self, written: int) -> None:
        """Show the end, now that all shards are written."""
        if self._done >= self._total:
            self._show(written)

    def _show(self, written: int) -> None:
        seconds = time.monotonic() - self._started
        words = f"rows · {self._positions / seconds:,.0f} tokens/s"
        if self._work is not None:
            words += f" · MFU {self._work.mfu(self._rows * self._seq_len, self._positions, seconds):.1%}"
        self.line.update(self._done, f"{words} · {byte_size(written)} written")
