"""α, T and β of each step: schedules of δ-distillation, or values that stay."""

from dataclasses import dataclass

from cached_distillation.dataset import CacheDataset
from delta_common.errors import UserError
from student.loss.channel_scale import channel_rms
from student.loss.frobenius import FrobeniusTerm
from student.loss.schedule import Coefficients, distillation_at
from student.loss.settings import DistillationSettings, FrobeniusSettings
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.read.cache import Cache

WITHOUT_FROBENIUS = FrobeniusSettings(weight_init=0.0, weight_final=0.0)


@dataclass
class Schedule:
    """What the coefficients of a step are."""

    wanted: DistillationSettings | Coefficients
    frobenius: FrobeniusTerm | None
    steps_per_epoch: int = 1

    @classmethod
    def of(cls, wanted: DistillationSettings | Coefficients | None, dataset: CacheDataset) -> "Schedule":
        """Checked against the cache; raises `UserError` for temperatures outside its range."""
        wanted = wanted or DistillationSettings(frobenius=WITHOUT_FROBENIUS)
        if isinstance(wanted, Coefficients):
            temperatures, beta = [wanted.temperature], wanted.beta
        else:
            temperatures, beta = [wanted.temperature_init, wanted.temperature_final], wanted.frobenius.weight_init
        for temperature in temperatures:
            require_temperature(dataset.cache, temperature)
        return cls(wanted, _term(wanted, dataset) if beta else None)

    def at(self, step: int) -> Coefficients:
        """Of the step behind `step` steps."""
        if isinstance(self.wanted, Coefficients):
            return self.wanted
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return distillation_at(self.wanted, epoch=epoch, step_in_epoch=in_epoch, global_step=step)


def require_temperature(cache: Cache, temperature: float) -> None:
    """Raise `UserError` unless the cache's targets are known at this temperature."""
    if cache.layout.mode == "exact":
        return
    try:
        interpolation_weights(cache.layout.node_temperatures, temperature)
    except UserError as error:
        remedy = "set it inside, or build a cache with other targets.temperatures"
        raise UserError(f"{error} of {cache.path}; {remedy}") from error


def _term(wanted: DistillationSettings | Coefficients, dataset: CacheDataset) -> FrobeniusTerm:
    if not dataset.hidden_states:
        raise UserError("beta above 0 needs CacheDataset(…, hidden_states=True)")
    settings = FrobeniusSettings(channels="raw") if isinstance(wanted, Coefficients) else wanted.frobenius
    if settings.trains_map:
        raise UserError(
            "frobenius.channels mapped: a Trainer trains no map beside its model; set it to normalised or raw"
        )
    rms = channel_rms(dataset.cache) if settings.channels == "normalised" else None
    return FrobeniusTerm(settings.norm, rms)
