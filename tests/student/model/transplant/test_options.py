"""Shapes of mixers that cannot be are refused in one line."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from delta_common.errors import UserError
from student.model.shape import StudentSettings
from student.model.transplant.options import (
    HYBRID,
    TRANSPLANT,
    MixerShape,
    mixer_shape,
    require_layers,
    require_window_in_row,
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": -1}, "0 or more"),
        ({"feature_factor": 0}, "model.feature_factor 0"),
        ({"window": 0, "sinks": 2}, "sinks stand behind a window; set model.window too"),
        ({"attention_at": (-1,)}, "model.attention_at -1: layers are counted from 0"),
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


@pytest.mark.parametrize(
    ("layers", "message"),
    [((0, 3), "model.attention_at 3: the teacher has the layers 0 to 2"), ((0, 1, 2), "names every layer")],
)
def test_layers_that_keep_attention_are_some_of_the_teachers(layers: tuple[int, ...], message: str) -> None:
    require_layers(replace(HYBRID, attention_at=(0, 2)), 3)
    with pytest.raises(UserError, match=message):
        require_layers(replace(HYBRID, attention_at=layers), 3)


def test_layers_are_put_in_order() -> None:
    settings = StudentSettings(preset="transplant", attention_at=(4, 1, 4))
    assert mixer_shape(settings) == replace(TRANSPLANT, attention_at=(1, 4))
