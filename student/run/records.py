"""Append-only files of one JSON object per line: the trace of training and what was measured."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_common.files import parse_json, write_atomically

JsonObject = dict[str, Any]
"""A line of such a file."""

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
COSTS_FILE = "costs.jsonl"


class Records:
    """A `.jsonl` file whose lines each carry the optimizer step they belong to; floats keep full precision."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[JsonObject]:
        """All whole lines; a last line cut short by a kill is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [parse_json(line) for line in lines if line.endswith("\n")]

    def append(self, record: JsonObject) -> None:
        """Add a line; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def drop_after(self, step: int) -> None:
        """Remove the lines after `step`: a resumed run takes those steps again."""
        kept = [record for record in self.read() if record["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())


@dataclass(frozen=True)
class StepCost:
    """One step as the first process saw it; a line of `costs.jsonl`."""

    step: int
    tokens: int
    """Valid positions of all processes."""
    seconds: float
    """Of the step alone, without evaluations and checkpoints."""
    waiting: float
    """Of these seconds, those spent waiting for data."""
    peak_bytes: int
    """The most memory the process has held so far: the GPU's where there is one, else the host's."""
    machine: str
    mfu: float | None = None
    """Share of the matrix peak of all its cards; None on a CPU, in float32, or where peak or operations are unknown."""
