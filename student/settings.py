"""What a user may set about training, in one place; the docstring under a field is its help text."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from delta_common.settings_file import FrozenSettings
from student.loss.settings import DistillationSettings
from student.model.shape import StudentSettings

INIT_FROM = "init_from"
"""Among the deciding settings: what `--init-from` names."""


class OptimizerSettings(FrozenSettings):
    """AdamW under a cosine schedule with warmup."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate, reached at the end of the warmup."""
    body_learning_rate: float | None = Field(None, ge=0)
    """The same for the teacher's own weights in a student that begins with them; 0 keeps them as they are."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the gradient's mean and of its square."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of all steps over which the learning rate rises."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""


class TrainingSettings(FrozenSettings):
    """How long, in which batches, in which precision."""

    epochs: int = Field(10, ge=1)
    """Passes over the cache."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, if the epochs have more; the learning rate ends there too."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows that each process puts through the student at a time."""
    gradient_accumulation: int = Field(4, ge=1)
    """Micro-batches per step in each process."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Decides the initial weights and the order of the rows."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the student computes in; fp16 and bf16 keep float32 master weights, as DeepSpeed does."""
    recompute: bool = False
    """Compute activations again in the backward pass, for students of a teacher's layers and of transformers: less
    memory, a third more time."""
    checkpoint_every: int = Field(500, ge=1)
    """Optimizer steps between checkpoints; the last step always writes one."""

    def global_batch(self, world_size: int) -> int:
        """Rows per step over all processes."""
        return self.micro_batch_size * self.gradient_accumulation * world_size


class TargetViewSettings(FrozenSettings):
    """How much of the cached targets to train on; all of it unless set."""

    top_k: int | None = Field(None, ge=1)
    """Use only this many of the largest cached logits."""
    samples: int | None = Field(None, ge=0)
    """Use at most this many entries sampled from the other logits."""


class CacheSettings(FrozenSettings):
    """One of several caches that are trained on together."""

    path: str
    """Folder or URL."""
    share: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of the rows trained on, relative to the other caches' shares; without any, every row is read as often."""
    distillation: DistillationSettings | None = None
    """Settings of the loss on its rows, whole, in place of the run's and of its stages'."""


class EvaluationSettings(FrozenSettings):
    """Held-out rows, measured before and after training."""

    cache: str | None = None
    """Folder or URL of a cache of held-out text by the same teacher; without it nothing is measured."""
    caches: tuple[str, ...] = ()
    """Several of them in place of `cache`, each measured by itself."""
    max_rows: int | None = Field(None, ge=1)
    """Measure only the first rows."""
    every: int | None = Field(None, ge=1)
    """Also measure after every this many optimizer steps."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The caches of held-out text."""
        return self.caches if self.cache is None else (self.cache,)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.cache is not None and self.caches:
            raise ValueError("cache and caches are both given; name all of them in caches")
        return self


Part = Literal["all", "mixers", "body"]


class StageSettings(FrozenSettings):
    """One stage of training: what is trained, by which loss, for how long."""

    train: Part = "all"
    """`mixers`: the new parameters alone. `body`: the teacher's own weights alone. `all`: both."""
    loss: Literal["distillation", "transfer"] = "distillation"
    """`transfer`: each mixer against the softmax attention that it replaces, on the same input."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; the last stage may leave them out, and then goes on to the end of the training."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the new parameters, in place of `optimizer.learning_rate`."""
    body_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the teacher's own weights, in place of `optimizer.body_learning_rate`."""
    distillation: DistillationSettings | None = None
    """Settings of the loss, whole, in place of the run's `distillation`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.loss == "transfer" and self.train != "mixers":
            raise ValueError("loss transfer trains the mixers alone; write train: mixers too")
        if self.loss == "transfer" and self.distillation is not None:
            raise ValueError("loss transfer has no teacher's term; leave distillation out")
        for part, rate in (("body", "learning_rate"), ("mixers", "body_learning_rate")):
            if self.train == part and getattr(self, rate) is not None:
                raise ValueError(f"{rate} is of weights that train {part} does not train; leave it out")
        return self


class TrainSettings(FrozenSettings):
    """Settings of `student-train`."""

    model: StudentSettings = StudentSettings()
    distillation: DistillationSettings = DistillationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    targets: TargetViewSettings = TargetViewSettings()
    caches: tuple[CacheSettings, ...] = ()
    """A list of caches to train on together, each with path, share, distillation; or give `--cache PATH=SHARE`
    for each."""
    evaluation: EvaluationSettings = EvaluationSettings()
    stages: tuple[StageSettings, ...] = ()
    """A list of stages, each with train, loss, steps, learning_rate, body_learning_rate, distillation; without it one
    stage that trains everything by distillation."""
    deepspeed: Path | None = None
    """DeepSpeed JSON, looked for beside the settings file, then in the current folder; without it ZeRO 0."""

    @property
    def trains_map(self) -> bool:
        """Whether a map of the student's states is trained beside it, for any of the caches."""
        return any(self.distillation_of(number).frobenius.trains_map for number in range(max(1, len(self.caches))))

    def distillation_of(self, number: int) -> DistillationSettings:
        """Settings of the loss on rows of a cache, counted from 0: its own or the run's."""
        own = self.caches[number].distillation if self.caches else None
        return own or self.distillation

    @model_validator(mode="after")
    def _all_caches_have_a_share(self) -> Self:
        without = [cache.path for cache in self.caches if cache.share is None]
        if 0 < len(without) < len(self.caches):
            raise ValueError(
                f"caches: {without[0]} has no share and others have one; give every cache a share, or none"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        for number, stage in enumerate(self.stages):
            where = f"stages.{number}"
            if stage.steps is None and number < len(self.stages) - 1:
                raise ValueError(f"{where}.steps: missing; only the last stage may leave them out")
            if not self.model.begins_as_teacher and (stage.train != "all" or stage.body_learning_rate is not None):
                given = "body_learning_rate" if stage.train == "all" else f"train {stage.train}"
                raise ValueError(
                    f"{where}.{given}: a student of {self.model.kind} does not begin with its "
                    "teacher's weights and has no such part; leave it out, or set model.preset"
                )
            if stage.train == "body" and stage.body_learning_rate is None and self.optimizer.body_learning_rate == 0:
                raise ValueError(
                    f"{where}.train body: optimizer.body_learning_rate is 0; give the stage a body_learning_rate"
                )
        return self

    def of_stage(self, stage: StageSettings) -> "TrainSettings":
        """These settings as they are in a stage: its learning rates, its distillation, of which transfer has no F."""
        rates = {"learning_rate": stage.learning_rate, "body_learning_rate": stage.body_learning_rate}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        distillation, caches = stage.distillation or self.distillation, self.caches
        if stage.loss == "transfer":
            distillation = distillation.without_frobenius()
            caches = tuple(cache.model_copy(update={"distillation": None}) for cache in caches)
        return self.model_copy(
            update={
                "optimizer": self.optimizer.model_copy(update=given),
                "distillation": distillation,
                "caches": caches,
            }
        )

    def deciding(self, world_size: int, init_from: Path | None = None) -> dict[str, Any]:
        """The settings that decide the numbers, as a checkpoint keeps them, and where the parameters came from.

        Of the batch only its size over all processes counts. Left out is what changes no number: when something is
        written or measured, and which kernels compute. Of several caches it has the settings of their own; which they
        are, and their shares, a checkpoint keeps by itself.
        """
        kept = self.model_dump(mode="json", exclude={"evaluation", "deepspeed", "caches"})
        own = {str(number): cache.distillation for number, cache in enumerate(self.caches) if cache.distillation}
        if own:
            kept["caches"] = {number: {"distillation": d.model_dump(mode="json")} for number, d in own.items()}
        for name in ("micro_batch_size", "gradient_accumulation", "checkpoint_every", "recompute"):
            del kept["training"][name]
        del kept["model"]["kernels"]
        if self.model.hf is None:  # Earlier versions had none.
            del kept["model"]["hf"], kept["model"]["hf_random"]
        if self.model.head_transform == "teacher":
            del kept["model"]["head_transform"]
        kept["training"]["global_batch"] = self.training.global_batch(world_size)
        stages = kept.pop("stages")
        if stages:  # Earlier versions had none, and their checkpoints do not name them.
            kept["stages"] = {str(number): stage for number, stage in enumerate(stages)}
        if init_from is not None:
            kept[INIT_FROM] = str(init_from.resolve())
        return kept
