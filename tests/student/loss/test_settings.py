"""Settings of the loss that make no sense are refused."""

import pytest
from pydantic import ValidationError

from student.loss.settings import DistillationSettings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha_init": 0.4}, "alpha_final 0.5 is above alpha_init 0.4"),
        ({"temperature_final": 3.0}, "temperature_final 3 is above temperature_init 2"),
        ({"temperature_final": 0}, "greater than 0"),
        ({"alpha_init": 0.95}, "sum to more than 1"),
        ({"frobenius": {"weight_init": 0.05}}, "weight_final 0.2 is above weight_init 0.05"),
        ({"delta": -0.1}, "greater than or equal to 0"),
        ({"detla": 0.1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DistillationSettings.model_validate(values)
