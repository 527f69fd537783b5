"""The progress line of a build."""

import os
import time

from delta_common.progress import ProgressLine, byte_size
from teacher_cache.format.manifest import Manifest


class BuildProgress:
    """Counts rows, positions and bytes, and says them on the progress line; `pending` are the shards still to build."""

    def __init__(self, manifest: Manifest, pending: list[int]) -> None:
        self._total = manifest.rows.count
        self._done = self._total - sum(len(manifest.shard_rows(shard)) for shard in pending)
        self._positions, self._started = 0, time.monotonic()
        shown = os.environ.get("RANK", "0") == "0"
        self.line = ProgressLine("build", total=self._total, done=self._done, shown=shown)

    def pass_over(self, rows: int) -> None:
        """Count rows that another process computes."""
        self._done += rows

    def add(self, rows: int, positions: int, written: int) -> None:
        """Count rows that were computed and their counted positions; `written` is the bytes written so far."""
        self._done += rows
        self._positions += positions
        if self._done < self._total:
            self._show(written)

    def end(self, written: int) -> None:
        """Show the end, now that all shards are written."""
        if self._done >= self._total:
            self._show(written)

    def _show(self, written: int) -> None:
        speed = self._positions / (time.monotonic() - self._started)
        self.line.update(self._done, f"rows · {speed:,.0f} tokens/s · {byte_size(written)} written")
