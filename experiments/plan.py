"""The size of the experiments, which every process of them reads from one file, and where things lie."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from delta_common.errors import UserError
from delta_common.files import write_atomically


@dataclass(frozen=True)
class ExperimentPlan:
    """What decides the numbers, for all variants alike."""

    teacher: str
    corpus: str | None
    """Folder with train.parquet and heldout.parquet; None makes Python's documentation."""
    seq_len: int
    rows: int
    held_out: int
    epochs: int
    batch: int
    """Rows a step."""
    options: tuple[str, ...]
    """Of `student-train`, laid over configs/demo-student.yaml."""

    @property
    def steps(self) -> int:
        """Of a training at equal tokens."""
        return self.epochs * (self.rows // self.batch)


@dataclass(frozen=True)
class Folder:
    """Where things lie."""

    path: Path

    def cache(self, name: str) -> Path:
        """`sparse`, `exact` or `held-out`."""
        return self.path / "caches" / name

    def run(self, variant: str, seed: int) -> Path:
        """What one training leaves."""
        return self.path / "runs" / variant / f"seed-{seed}"

    @property
    def timing(self) -> Path:
        """Seconds of a step, by variant."""
        return self.path / "step_seconds.json"

    @property
    def teacher_scores(self) -> Path:
        """What the teacher itself scores on the held-out rows."""
        return self.path / "teacher.json"

    def settle(self, plan: ExperimentPlan) -> None:
        """Keep the plan. Raises `UserError` when the folder holds results of another."""
        file = self.path / "plan.json"
        if file.exists() and self.plan() != plan:
            raise UserError(f"{file}: results of another size lie here; give the same options, or another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(plan), indent=1).encode())

    def plan(self) -> ExperimentPlan:
        content = json.loads((self.path / "plan.json").read_text())
        return ExperimentPlan(**(content | {"options": tuple(content["options"])}))

    def step_seconds(self) -> dict[str, float]:
        """What a step took where nothing ran beside it, by variant."""
        return dict(json.loads(self.timing.read_text()))

    def results(self) -> list[dict[str, object]]:
        """What all finished trainings left."""
        return [json.loads(file.read_text()) for file in sorted(self.path.glob("runs/*/seed-*/result.json"))]
