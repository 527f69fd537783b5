"""Which teachers a student can begin as, and their rotary positions."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from delta_common.errors import UserError
from student.model.transplant.families import FAMILIES, build_body, rotated
from tests.helpers.transplants import FAMILIES as TESTED
from tests.helpers.transplants import small_config


def test_every_family_is_tested() -> None:
    assert set(TESTED) == set(FAMILIES)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", None])
def test_another_family_is_refused_by_name(family: str | None) -> None:
    with pytest.raises(UserError, match=f"decoder layers of {family!r} cannot be built on; those that can: llama,"):
        build_body({"model_type": family})


def test_rotary_positions_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = AutoConfig.for_model(**small_config("llama"), rope_scaling=None)
    fields: dict[str, Any] = {**config.to_dict(), "rope_parameters": rope}
    with pytest.raises(UserError, match="of type dynamic change with the length"):
        build_body(fields)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}]
)
def test_rotary_positions_are_the_teachers(rope: dict[str, Any]) -> None:
    fields = {**small_config("llama"), "rope_parameters": rope}
    rotary = build_body(fields).rotary
    place, x = torch.tensor([[0, 3, 100]]), torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    theirs = LlamaRotaryEmbedding(LlamaConfig(**{k: v for k, v in fields.items() if k != "model_type"}))
    expected, _ = apply_rotary_pos_emb(x, x, *theirs(x, place))
    assert torch.equal(rotated(x, rotary.angles(place, x.dtype)), expected)
    assert rotary.longest == 128
