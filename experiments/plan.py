"""The size of the experiments, which all their processes read from one file, and the folder they share."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from delta_common.errors import UserError
from delta_common.files import write_atomically


@dataclass(frozen=True)
class ExperimentPlan:
    """What decides the numbers of all variants alike."""

    teacher: str
    corpus: str | None
    """Folder with train.parquet and heldout.parquet; None makes Python's documentation."""
    seq_len: int
    rows: int
    held_out: int
    epochs: int
    batch: int
    """Rows per step."""
    options: tuple[str, ...]
    """Options of `student-train` that override configs/demo-student.yaml."""

    @property
    def steps(self) -> int:
        """Steps of a training, the same for all variants that are not `as_long_as` another."""
        return self.epochs * (self.rows // self.batch)


@dataclass(frozen=True)
class Folder:
    """Where the experiments keep what they make."""

    path: Path

    def cache(self, name: str) -> Path:
        """Folder of the cache `sparse`, `exact` or `held-out`."""
        return self.path / "caches" / name

    def run(self, variant: str, seed: int) -> Path:
        """Folder of one training."""
        return self.path / "runs" / variant / f"seed-{seed}"

    @property
    def timing(self) -> Path:
        """File with the seconds per step, by variant."""
        return self.path / "step_seconds.json"

    @property
    def teacher_scores(self) -> Path:
        """File with the teacher's own scores on the held-out rows."""
        return self.path / "teacher.json"

    def settle(self, plan: ExperimentPlan) -> None:
        """Write the plan. Raises `UserError` when the folder holds results of another."""
        file = self.path / "plan.json"
        if file.exists() and self.plan() != plan:
            raise UserError(f"{file}: results of another size lie here; give the same options, or another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(plan), indent=1).encode())

    def plan(self) -> ExperimentPlan:
        content = json.loads((self.path / "plan.json").read_text())
        return ExperimentPlan(**(content | {"options": tuple(content["options"])}))

    def step_seconds(self) -> dict[str, float]:
        """Seconds per step, by variant, measured with nothing else running."""
        return dict(json.loads(self.timing.read_text()))

    def results(self) -> list[dict[str, object]]:
        """Results of all finished trainings."""
        return [json.loads(file.read_text()) for file in sorted(self.path.glob("runs/*/seed-*/result.json"))]
