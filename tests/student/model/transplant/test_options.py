"""Shapes of mixers that cannot be are refused in one line."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from delta_common.errors import UserError
from student.model.transplant.options import HYBRID, TRANSPLANT, MixerShape, require_window_in_row


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": -1}, "0 or more"),
        ({"feature_factor": 0}, "model.feature_factor 0"),
        ({"window": 0, "sinks": 2}, "sinks stand behind a window; set model.window too"),
        ({"lags": 3}, "without a window; set them to 0"),
        ({"convolution": 4}, "without a window; set them to 0"),
    ],
)
def test_what_makes_no_mixer_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        MixerShape(**{**asdict(HYBRID), **fields})
    assert "\n" not in str(caught.value)


def test_a_window_longer_than_the_row_is_refused() -> None:
    require_window_in_row(HYBRID, 64)
    require_window_in_row(TRANSPLANT, 1)
    with pytest.raises(UserError, match=r"model.window 65 is longer than the cache's rows of 64.*give at most 64"):
        require_window_in_row(replace(HYBRID, window=65), 64)
