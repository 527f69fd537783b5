"""The files of a run's folder that other commands read: its settings, metrics, costs, measurements and summary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.logits.transform import LogitTransform
from delta_common.settings_file import FrozenSettings
from student.run.records import COSTS_FILE, EVALUATION_FILE, METRICS_FILE, JsonObject, Records, StepCost
from student.settings import Part, TrainSettings

SETTINGS_FILE = "settings.json"
PLAN_FILE = "plan.json"
TRAINED_FILE = "trained.safetensors"
TEACHER_CONFIG_FILE = "teacher_config.json"
"""Of a student that begins as its teacher: the teacher's configuration, which gives the layers their shape."""
STUDENT_CONFIG_FILE = "student_config.json"
"""Of a student that is a model of transformers: its configuration."""
PROVENANCE_FILE = "provenance.json"
SUMMARY_FILE = "summary.json"


class PlannedStage(FrozenSettings):
    """A stage of a run, as `plan.json` and `summary.json` name it."""

    name: str
    """`attention transfer` or `distillation`."""
    train: Part
    steps: int


class RunPlan(FrozenSettings):
    """`plan.json`: how many steps the run will take, and in which stages."""

    total_steps: int
    stages: tuple[PlannedStage, ...] = ()
    """Empty for a run of a version without stages."""


class Sample(FrozenSettings):
    """A held-out beginning and the student's continuations: its likeliest tokens, and tokens drawn at T = 1."""

    prompt: str
    likeliest: str
    drawn: str


class Origin(FrozenSettings):
    """A run or an export that another run's parameters come from."""

    kind: Literal["run", "export"]
    path: str
    """Where it lay when it was read."""
    steps: int
    """Steps it had taken by then."""
    cache_fingerprint: str
    settings_sha256: str
    """Of its settings as JSON with sorted keys."""


class TrainedCache(FrozenSettings):
    """One of several caches that a run trains on."""

    path: str
    fingerprint: str
    teacher: str
    rows: int
    share: float
    """Of the rows trained on."""
    passes: float
    """Over its rows, by the end of the run."""
    has_states: bool
    """Whether it has averaged hidden states."""


class Provenance(FrozenSettings):
    """`provenance.json`, written when a run begins: what it is trained on, and what its parameters come from."""

    cache: str
    cache_fingerprint: str
    teacher: str
    teacher_weights_sha256: str
    tokenizer_sha256: str
    context: str
    """`rows.context` of the cache trained on."""
    embedding_scale: float | None = None
    """What the student's first block read over the embedding; None for the embedding itself."""
    logit_transform: LogitTransform | None = None
    """What the student does behind the LM head; None for nothing."""
    begun_from: tuple[Origin, ...] = ()
    """The chain of runs and exports before this run, oldest first; empty where it began by itself."""
    caches: tuple[TrainedCache, ...] = ()
    """Of several caches all of them; the first one is also named above."""


class RunSummary(Provenance):
    """`summary.json` of a finished run; nothing in it depends on the clock."""

    steps: int
    stages: tuple[PlannedStage, ...] = ()
    """Empty for a run of a version without stages."""
    trainable_parameters: int
    total_parameters: int
    teacher_measures: dict[str, float] | None
    """The teacher's own numbers on the (first) held-out cache, under the names of the student's; None without one."""
    teacher_measures_by_cache: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Of several held-out caches the same on each, by its fingerprint."""
    samples: list[Sample]
    """Empty where the cache has no tokenizer, or each process holds only a part of the parameters."""


@dataclass(frozen=True)
class RunFiles:
    """A run's folder as it is found; where the run has not finished, `summary` is None and lists are shorter.

    metrics, evaluations and costs are the lines of `metrics.jsonl`, `evaluation.jsonl` and `costs.jsonl`.
    """

    path: Path
    settings: TrainSettings
    metrics: list[JsonObject]
    evaluations: list[JsonObject]
    costs: list[StepCost]
    summary: RunSummary | None
    plan: RunPlan | None = None
    """None for a run of a version that wrote none."""
    provenance: Provenance | None = None
    """None for a run of a version that wrote none."""

    @property
    def held_out(self) -> "dict[str, HeldOutRecords]":
        """`evaluations` by held-out cache, under its fingerprint, in the order they were measured in."""
        found: dict[str, HeldOutRecords] = {}
        for record in self.evaluations:
            key = str(record.get("cache"))
            found.setdefault(key, HeldOutRecords(str(record.get("path", key)), [])).records.append(record)
        return found


@dataclass(frozen=True)
class HeldOutRecords:
    """What a run measured on one held-out cache."""

    path: str
    """Where the cache lay; its fingerprint for a run with a single one."""
    records: list[JsonObject]


def read_run(path: Path) -> RunFiles:
    """Read a run's folder. Raises `UserError` when it is no run, or naming the file that is damaged."""
    settings = read_settings(path)
    summary, plan = path / SUMMARY_FILE, path / PLAN_FILE
    return RunFiles(
        path,
        settings,
        metrics=_lines(path / METRICS_FILE),
        evaluations=_lines(path / EVALUATION_FILE),
        costs=_costs(path / COSTS_FILE),
        summary=_parse(RunSummary, summary) if summary.is_file() else None,
        plan=_parse(RunPlan, plan) if plan.is_file() else None,
        provenance=read_provenance(path),
    )


def read_settings(path: Path) -> TrainSettings:
    """The settings of a run's folder. Raises `UserError` when it is no run, or they are damaged."""
    if not (path / SETTINGS_FILE).is_file():
        raise UserError(f"{path}: no training run here; give the --out folder of student-train")
    return _parse(TrainSettings, path / SETTINGS_FILE)


def read_provenance(path: Path) -> Provenance | None:
    """What a run says it is trained on; None for an unfinished run of a version that wrote it at the end only."""
    for model, file in ((Provenance, path / PROVENANCE_FILE), (RunSummary, path / SUMMARY_FILE)):
        if file.is_file():
            return _parse(model, file)
    return None


def read_plain_provenance(export: Path) -> Provenance | None:
    """What an export of a model of transformers says it was trained on; None for a model that is no export."""
    file = export / PROVENANCE_FILE
    return _parse(Provenance, file) if file.is_file() else None


def read_summary(path: Path) -> RunSummary:
    """The summary of a finished run. Raises `UserError` when it has not finished."""
    if not (path / SUMMARY_FILE).is_file():
        raise UserError(f"{path}: the run has not finished; run its student-train command again to its end")
    return _parse(RunSummary, path / SUMMARY_FILE)


ModelT = TypeVar("ModelT", bound=BaseModel)


def _parse(model: type[ModelT], path: Path) -> ModelT:
    try:
        return model.model_validate(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not what student-train writes there; run its command again") from error


def _costs(path: Path) -> list[StepCost]:
    try:
        return [StepCost(**line) for line in _lines(path)]
    except TypeError as error:
        raise UserError(f"{path}: not what student-train writes there; is it damaged?") from error


def _lines(path: Path) -> list[JsonObject]:
    try:
        found = Records(path).read()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as lines of JSON ({error}); is it damaged?") from error
    if not all(isinstance(line, dict) for line in found):
        raise UserError(f"{path}: not readable as lines of JSON objects; is it damaged?")
    return found
