"""α, T and β of a step."""

from pathlib import Path

import pytest

from cached_distillation.dataset import CacheDataset
from cached_distillation.trainer.schedule import Schedule
from delta_common.errors import UserError
from student.loss.frobenius import FrobeniusTerm
from student.loss.schedule import Coefficients, distillation_at
from student.loss.settings import DistillationSettings


def test_it_is_the_trainers_with_epochs_of_its_own(dataset: CacheDataset) -> None:
    wanted = DistillationSettings(frobenius={"weight_init": 0, "weight_final": 0})
    schedule = Schedule.of(None, dataset)
    schedule.steps_per_epoch = 5
    assert schedule.frobenius is None
    assert schedule.at(13) == distillation_at(wanted, epoch=2, step_in_epoch=3, global_step=13)
    assert schedule.at(13) != schedule.at(8)


def test_values_may_stay(dataset: CacheDataset) -> None:
    values = Coefficients(0.3, 1.2, 0.0)
    schedule = Schedule.of(values, dataset)
    assert schedule.at(0) == schedule.at(1000) == values


def test_beta_needs_hidden_states(uneven_path: Path, dataset: CacheDataset) -> None:
    values = Coefficients(0.3, 1.2, 0.1)
    with pytest.raises(UserError, match="hidden_states=True"):
        Schedule.of(values, dataset)
    assert Schedule.of(values, CacheDataset(uneven_path, hidden_states=True)).frobenius == FrobeniusTerm()


@pytest.mark.parametrize(
    "wanted",
    [
        Coefficients(0.5, 3.0, 0.0),
        DistillationSettings(temperature_init=3.0, frobenius={"weight_init": 0, "weight_final": 0}),
    ],
)
def test_temperatures_outside_the_range_are_refused(
    dataset: CacheDataset, wanted: Coefficients | DistillationSettings
) -> None:
    with pytest.raises(UserError, match=r"temperature 3 is outside the cached range 1 to 2 of .*; set it inside"):
        Schedule.of(wanted, dataset)
