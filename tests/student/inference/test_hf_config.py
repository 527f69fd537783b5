"""The configuration of an export: its numbers are a shape's, and it comes back from its file."""

from dataclasses import fields
from pathlib import Path

from student.inference.hf_config import DistilXLSTMConfig
from student.model.shape import StudentShape


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


def test_trainers_that_ask_for_an_exports_code_are_told_of_none(tmp_path: Path) -> None:
    DistilXLSTMConfig().save_pretrained(tmp_path)
    config = DistilXLSTMConfig.from_pretrained(tmp_path)
    assert config.auto_map == {}
    assert "auto_map" not in config.to_dict()
