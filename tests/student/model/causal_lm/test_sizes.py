"""A transformer in the paper's student's size."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from delta_common.errors import UserError
from student.model.causal_lm.sizes import parameters_of, sized_like
from student.model.causal_lm.student import configured
from student.model.shape import StudentSettings, StudentShape, TeacherDims, resolve_shape
from tests.helpers.families import FAMILIES, family_model

QWEN = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def paper(width: int = 1536, **more: Any) -> StudentShape:
    return resolve_shape(StudentSettings(preset="transformer", **more), TeacherDims(width, 28, 12))


def small(**more: Any) -> StudentShape:
    return paper(32, heads=4, qkv_block_size=8, **more)


def blocks_in(config: dict[str, Any]) -> int:
    """Parameters of the blocks and the last norm, of a model without embedding and head."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configured(config))
    return sum(
        p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )


def test_the_papers_teacher_gives_six_blocks_of_as_many_parameters() -> None:
    shape = paper()
    assert parameters_of(shape) == 84_175_968
    config = sized_like(Qwen2Config(**QWEN).to_dict(), shape)
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (6, 1848)
    assert blocks_in(config) == pytest.approx(84_175_968, rel=5e-4)


def test_where_attention_takes_nearly_all_there_are_fewer_blocks() -> None:
    large = QWEN | {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    shape = paper(1024)
    config = sized_like(Qwen3Config(**large).to_dict(), shape)
    assert config["num_hidden_layers"] == 4
    assert blocks_in(config) == pytest.approx(parameters_of(shape), rel=2e-3)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma3Text", "SmolLM3", "Mixtral", "Phi"])
def test_any_family_with_one_width_is_built(family: str) -> None:
    """Lists of a value per layer are as long as there are blocks: more than the teacher has, or fewer."""
    for blocks in (2, 6):
        config = sized_like(family_model(family).config.to_dict(), small(blocks=blocks))
        assert configured(config).num_hidden_layers == blocks


@pytest.mark.parametrize("family", ["GPT2", "Qwen2Moe"])
def test_a_family_without_one_is_one_line(family: str) -> None:
    assert family in FAMILIES
    with pytest.raises(UserError, match=r"model.preset transformer: .*name a student with model.hf"):
        sized_like(family_model(family).config.to_dict(), small())
