"""Settings of the δ-distillation loss: teacher weight, temperature, Frobenius weight, and how they fall."""

from typing import Literal, Self

from pydantic import Field, model_validator

from delta_common.settings_file import FrozenSettings


class FrobeniusSettings(FrozenSettings):
    """The hidden-state term β·F; both weights 0 leave it out."""

    weight_init: float = Field(default=0.2, ge=0, le=1)
    """β at the first update; equal to weight_final it stays fixed."""

    weight_final: float = Field(default=0.2, ge=0, le=1)
    """β that the schedule falls to; the paper anneals 0.2 to 0.1, or keeps 0.1."""

    norm: Literal["sequence", "batch"] = "sequence"
    """One norm per sequence (Eq. 37 read literally), or one over the whole micro-batch (the authors' code)."""

    channels: Literal["mapped", "raw", "normalised"] = "mapped"
    """`mapped` compares the teacher's states, each channel divided by its RMS, with a linear map of the student's that
    is trained beside it; `raw` (the paper) compares them as they are and `normalised` each channel divided by the
    teacher's RMS of it: there F hardly falls, as the student's normed output cannot reach the teacher's states."""

    @property
    def enabled(self) -> bool:
        return self.weight_init > 0

    @property
    def trains_map(self) -> bool:
        """Whether a map of the student's states is trained beside it."""
        return self.enabled and self.channels == "mapped"

    @model_validator(mode="after")
    def _falls(self) -> Self:
        _require_falling("weight", self.weight_init, self.weight_final)
        return self


class DistillationSettings(FrozenSettings):
    """δ-distillation: teacher weight α and temperature T fall with every update and start lower every epoch."""

    alpha_init: float = Field(default=0.8, ge=0, le=1)
    """Weight of the teacher's term at the first update."""

    alpha_final: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teacher's term that the schedule falls to."""

    temperature_init: float = Field(default=2.0, gt=0)
    """Softening temperature at the first update; the cache must cover it."""

    temperature_final: float = Field(default=1.0, gt=0)
    """Softening temperature that the schedule falls to."""

    delta: float = Field(default=0.05, ge=0, le=1)
    """How far each epoch's starting values fall below those of the epoch before."""

    epoch_decay: Literal["subtractive", "multiplicative"] = "subtractive"
    """Start an epoch at x_init - delta (the paper) or at x_init * (1 - delta) (the authors' code)."""

    restart_each_epoch: bool = True
    """Count k from 0 in every epoch (the authors' code), or over the whole training (the paper's text)."""

    frobenius: FrobeniusSettings = Field(default_factory=FrobeniusSettings)
    """The hidden-state term."""

    def without_frobenius(self) -> Self:
        """The same without the hidden-state term."""
        nothing = self.frobenius.model_copy(update={"weight_init": 0.0, "weight_final": 0.0})
        return self.model_copy(update={"frobenius": nothing})

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        _require_falling("alpha", self.alpha_init, self.alpha_final)
        _require_falling("temperature", self.temperature_init, self.temperature_final)
        if self.alpha_init + self.frobenius.weight_init > 1:
            raise ValueError(
                f"alpha_init {self.alpha_init:g} and frobenius.weight_init {self.frobenius.weight_init:g} sum to "
                "more than 1 and leave cross-entropy a negative weight; lower one of them"
            )
        return self


def _require_falling(name: str, init: float, final: float) -> None:
    if final > init:
        raise ValueError(
            f"{name}_final {final:g} is above {name}_init {init:g}, but the schedule only falls; swap them"
        )
