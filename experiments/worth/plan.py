"""The size of a comparison and its folder, which holds results of one version of the code only."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from delta_common.errors import UserError
from delta_common.files import write_atomically

ROOT = Path(__file__).parents[2]
CODE = ("configs", "delta_common", "student", "teacher_cache")
"""Folders whose files decide the numbers."""
SETTINGS = ("experiments/worth/caches.py", "experiments/worth/students.py")
"""Files that do, by what they ask of the commands."""
LONG_ROWS, LONGER = "train-long", 8
"""The cache whose rows are longer than the others', and how many times."""


@dataclass(frozen=True)
class WorthPlan:
    """What all trainings have alike."""

    teacher: str
    corpus: str
    """Folder with train.parquet and held_out.parquet."""
    seq_len: int
    rows: int
    """Rows trained on, each once."""
    held_out: int
    """Rows measured on."""
    points: int
    """Measurements on held-out rows after the one before training, evenly over the tokens."""
    options: tuple[str, ...]
    """Options of `student-train` for all students, in place of their own."""

    @property
    def tokens(self) -> int:
        """Tokens of a training."""
        return self.rows * self.seq_len

    def shape(self, cache: str) -> tuple[int, int]:
        """Rows and tokens per row of a cache to train on: equally many tokens in all."""
        longer = LONGER if cache == LONG_ROWS else 1
        return self.rows // longer, self.seq_len * longer


@dataclass(frozen=True)
class WorthFolder:
    """Where caches, runs, and one small result per training lie; results may be carried to another machine."""

    path: Path

    @property
    def results(self) -> Path:
        """Folder of the results."""
        return self.path / "results"

    def cache(self, name: str) -> Path:
        """Folder of the cache `train` or `held-out`."""
        return self.path / "caches" / name

    def settle(self, plan: WorthPlan) -> None:
        """Write plan and version of the code. Raises `UserError` where results of others lie here."""
        file = self.results / "settled.json"
        # Where teacher and corpus lie differs from machine to machine.
        ours = {name: value for name, value in asdict(plan).items() if name not in ("teacher", "corpus")}
        ours = json.loads(json.dumps({**ours, "code": code_digest()}))
        found = json.loads(file.read_text()) if file.exists() else ours
        differ = sorted(name for name in ours if found.get(name) != ours[name])
        if differ:
            what = "of another version of the code" if differ == ["code"] else f"of other {', '.join(differ)}"
            raise UserError(f"{file}: results {what} lie here; give the same, or another folder")
        write_atomically(file, json.dumps(ours, indent=1).encode())
        write_atomically(self.path / "plan.json", json.dumps(asdict(plan), indent=1).encode())

    def plan(self) -> WorthPlan:
        """The plan that lies here."""
        content = json.loads((self.path / "plan.json").read_text())
        return WorthPlan(**(content | {"options": tuple(content["options"])}))

    def found(self) -> list[dict[str, Any]]:
        """The results of all trainings that are done, by name and seed."""
        return [json.loads(file.read_text()) for file in sorted(self.results.glob("*-seed-*.json"))]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """What students can do, by name."""
        found = [json.loads(file.read_text()) for file in sorted(self.results.glob("*-tasks.json"))]
        return {each["name"]: each for each in found}

    def alone(self) -> dict[str, dict[str, Any]]:
        """What a step of each student takes with nothing beside it, by name."""
        found = [json.loads(file.read_text()) for file in sorted(self.results.glob("*-alone.json"))]
        return {each["name"]: each for each in found}


@cache
def code_digest() -> str:
    """SHA-256 over names and bytes of the code and configurations that decide the numbers."""
    sha = hashlib.sha256()
    found = [file for folder in CODE for file in sorted((ROOT / folder).rglob("*"))] + [
        ROOT / name for name in SETTINGS
    ]
    for file in found:
        if file.suffix in (".py", ".yaml", ".json"):
            sha.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return sha.hexdigest()
