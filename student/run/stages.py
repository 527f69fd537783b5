"""The stages of a run: which steps each takes, what it trains and by which loss."""

from dataclasses import dataclass

from delta_common.errors import UserError
from student.run.files import PlannedStage
from student.settings import StageSettings, TrainSettings

LOSS_NAMES = {"transfer": "attention transfer", "distillation": "distillation"}


@dataclass(frozen=True)
class Stage:
    """One stage; its steps are those from `start` to `stop`, exclusive, of the run's, counted from 0."""

    number: int
    """From 1."""
    count: int
    """Stages of the run."""
    start: int
    stop: int
    settings: StageSettings

    @property
    def steps(self) -> int:
        return self.stop - self.start

    @property
    def is_last(self) -> bool:
        return self.number == self.count

    @property
    def words(self) -> str:
        """As it is shown while training: `training`, or where there are several `stage 1 of 2: attention transfer`."""
        if self.count == 1 and self.settings.loss == "distillation":
            return "training"
        return f"stage {self.number} of {self.count}: {LOSS_NAMES[self.settings.loss]}"


def stages_of(settings: TrainSettings, steps_per_epoch: int) -> tuple[Stage, ...]:
    """The stages in order; without any in the settings there is one, of everything by distillation.

    Raises `UserError` where they are longer than the training may be, or one is left without a step.
    """
    training = settings.training
    longest = training.epochs * steps_per_epoch
    if training.max_steps is not None:
        longest = min(longest, training.max_steps)
    wanted = settings.stages or (StageSettings(),)
    stages, start = [], 0
    for number, stage in enumerate(wanted):
        stop = longest if stage.steps is None else start + stage.steps
        if stop > longest or stop == start:
            raise UserError(_too_long(settings, number, steps_per_epoch, longest))
        stages.append(Stage(number + 1, len(wanted), start, stop, stage))
        start = stop
    return tuple(stages)


def planned(stage: Stage) -> PlannedStage:
    """The stage as a run's files name it."""
    return PlannedStage(name=LOSS_NAMES[stage.settings.loss], train=stage.settings.train, steps=stage.steps)


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage of the step that follows `step` steps; behind the last step it is the last stage."""
    return next((stage for stage in stages if step < stage.stop), stages[-1])


def _too_long(settings: TrainSettings, number: int, steps_per_epoch: int, longest: int) -> str:
    wanted = sum(stage.steps or 1 for stage in settings.stages[: number + 1])
    if longest == settings.training.max_steps:
        limit, remedy = f"training.max_steps {longest}", "training.max_steps"
    else:
        limit = f"training.epochs {settings.training.epochs} of {steps_per_epoch} steps"
        remedy = "training.epochs"
    return (
        f"stages.{number}: the stages up to this one take {wanted} steps or more, and {limit} allows {longest}; "
        f"lower their steps or raise {remedy}"
    )
