"""The configuration of an export: its numbers are a shape's, and it comes back from its file."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from delta_common.errors import UserError
from student.inference.hf_config import CONFIGS, DistilTransplantConfig, DistilXLSTMConfig, StudentConfig
from student.model.shape import StudentShape
from student.model.transplant.options import HYBRID
from tests.helpers.transplants import small_config


def test_the_shape_has_every_number() -> None:
    numbers = {
        "hidden_size": 48,
        "conv_kernel": 5,
        "qkv_block_size": 8,
        "mlstm_proj_factor": 3.0,
        "slstm_ffn_factor": 1.5,
    }
    config = DistilXLSTMConfig(num_hidden_layers=4, num_attention_heads=6, slstm_at=[0, 2], **numbers)
    assert config.shape == StudentShape(blocks=4, heads=6, slstm_at=(0, 2), **numbers)
    assert len(vars(config.shape)) == len(fields(StudentShape)) == len(numbers) + 3


def test_no_slstm_blocks_are_an_empty_tuple() -> None:
    assert DistilXLSTMConfig().shape.slstm_at == ()


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    provenance = {"teacher": {"name": "t"}, "steps": 6}
    config = DistilXLSTMConfig(vocab_size=40, padded_vocab_size=48, tokenizer_sha256="ab", provenance=provenance)
    config.save_pretrained(tmp_path)
    again = DistilXLSTMConfig.from_pretrained(tmp_path)
    assert again.model_type == "distil_xlstm"
    assert (again.vocab_size, again.padded_vocab_size, again.tokenizer_sha256) == (40, 48, "ab")
    assert again.provenance == provenance
    assert again.shape == config.shape


@pytest.mark.parametrize("kind", CONFIGS)
def test_trainers_that_ask_for_an_exports_code_are_told_of_none(kind: type[StudentConfig], tmp_path: Path) -> None:
    kind().save_pretrained(tmp_path)
    config = kind.from_pretrained(tmp_path)
    assert config.auto_map == {}
    assert "auto_map" not in config.to_dict()


def transplant_config(**mixer: Any) -> DistilTransplantConfig:
    return DistilTransplantConfig(teacher_config=small_config("qwen3"), mixer={**asdict(HYBRID), **mixer})


def test_a_teachers_configuration_and_a_mixer_come_back_from_their_file(tmp_path: Path) -> None:
    transplant_config().save_pretrained(tmp_path)
    again = DistilTransplantConfig.from_pretrained(tmp_path)
    assert again.model_type == "distil_transplant"
    assert again.shape == HYBRID
    teacher = small_config("qwen3")
    assert {name: again.layers[name] for name in teacher if name != "id2label"} == {
        name: value for name, value in teacher.items() if name != "id2label"
    }


def test_layers_that_keep_attention_come_back_and_may_be_missing(tmp_path: Path) -> None:
    transplant_config(attention_at=[0, 2]).save_pretrained(tmp_path)
    assert DistilTransplantConfig.from_pretrained(tmp_path).shape == replace(HYBRID, attention_at=(0, 2))
    of_before = {name: value for name, value in asdict(HYBRID).items() if name != "attention_at"}
    assert DistilTransplantConfig(teacher_config=small_config("qwen3"), mixer=of_before).shape == HYBRID


@pytest.mark.parametrize("teacher", [None, [], {}, {"model_type": ["llama"]}, {"model_type": "gpt_neox"}])
def test_layers_of_a_family_unknown_to_this_version_are_one_line(teacher: Any) -> None:
    config = DistilTransplantConfig(teacher_config=teacher)
    with pytest.raises(
        UserError, match=r"builds no layers of family .* llama, .*; use the version of delta-cache that"
    ):
        _ = config.layers


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        ({"gate": 1}, "gate is not known to this version; use the version of delta-cache that wrote"),
        ({"lags": "8"}, "lags is '8', not a whole number"),
        ({"window": None}, "window is None, not a whole number"),
        ({"sinks": -1}, "give 0 or more"),
        ({"attention_at": "3"}, "attention_at is '3', not a list of whole numbers"),
        ({"attention_at": [1.5]}, "not a list of whole numbers"),
    ],
)
def test_numbers_of_a_mixer_that_this_version_does_not_know_are_one_line(mixer: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = transplant_config(**mixer).shape
