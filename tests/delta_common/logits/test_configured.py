"""A configuration's numbers are candidates; what the model does decides."""

from types import SimpleNamespace

import pytest
import torch

from delta_common.logits.configured import (
    UnknownTransformError,
    factors,
    injected_logits,
    transform_behind,
    without_transform,
)
from delta_common.logits.transform import LogitTransform

GIVEN = injected_logits(300, torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "returned", "found"),
    [
        ({}, GIVEN, None),
        ({"final_logit_softcapping": None, "logit_scale": "inv_sqrt_d_model"}, GIVEN, None),
        ({"logits_scaling": 8.0}, GIVEN, None),  # as MPT has a field that it ignores
        ({"final_logit_softcapping": 30}, 30 * torch.tanh(GIVEN / 30), LogitTransform(cap=30.0)),
        ({"logits_soft_cap": 30.0}, 30 * torch.tanh(GIVEN / 30), LogitTransform(cap=30.0)),
        ({"logits_scaling": 8.0}, GIVEN / 8, LogitTransform(scale=1 / 8)),
        ({"logits_scaling": 8.0}, GIVEN * 8, LogitTransform(scale=8.0)),
        ({"logit_scale": 0.999}, GIVEN * 0.999, LogitTransform(scale=0.999)),
        ({"lm_head_multiplier": 0.039}, GIVEN * 0.039, LogitTransform(scale=0.039)),
        (
            {"output_multiplier": 0.2, "final_logit_softcapping": 20.0},
            20 * torch.tanh(GIVEN * 0.2 / 20),
            LogitTransform(scale=0.2, cap=20.0),
        ),
    ],
)
def test_the_forward_pass_decides(
    config: dict[str, object], returned: torch.Tensor, found: LogitTransform | None
) -> None:
    assert transform_behind(SimpleNamespace(**config), GIVEN, returned) == found


@pytest.mark.parametrize(
    ("config", "returned"),
    [
        ({}, GIVEN * 0.999),
        ({"logit_scale": 0.5}, GIVEN * 0.501),
        ({"final_logit_softcapping": 30.0}, 31 * torch.tanh(GIVEN / 31)),
        ({"logit_scale": 0.5}, GIVEN * 0.5 + 1e-3 * torch.arange(300)),
        ({"final_logit_softcapping": 30.0}, GIVEN.clamp(-30, 30)),
    ],
)
def test_what_a_configuration_does_not_name_is_unknown(config: dict[str, object], returned: torch.Tensor) -> None:
    with pytest.raises(UnknownTransformError):
        transform_behind(SimpleNamespace(**config), GIVEN, returned)


def test_a_transform_in_16_bits_is_known_too() -> None:
    config = SimpleNamespace(final_logit_softcapping=30.0)
    in_16 = torch.tanh(GIVEN.bfloat16() / 30) * 30
    assert transform_behind(config, GIVEN, in_16) == LogitTransform(cap=30.0)


def test_the_injected_logits_survive_16_bits() -> None:
    assert torch.equal(GIVEN.bfloat16().float(), GIVEN)
    assert float(GIVEN.abs().max()) == 60


def test_a_configuration_is_written_without_what_changes_logits() -> None:
    config = {"final_logit_softcapping": 30.0, "logits_scaling": 8.0, "logit_scale": None, "hidden_size": 4}
    assert without_transform(config) == {**config, "final_logit_softcapping": None, "logits_scaling": 1.0}


def test_a_factor_may_divide() -> None:
    assert factors(SimpleNamespace(logits_scaling=4.0, logit_scale=None, lm_head_multiplier=True)) == [1.0, 4.0, 0.25]
