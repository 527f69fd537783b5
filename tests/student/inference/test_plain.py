"""Any model of transformers loaded as a student."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from student.inference.load import is_ours, load_export
from student.inference.plain import load_plain
from tests.helpers.causal_students import save_llama
from tests.helpers.families import attention_of, save_family


def test_a_model_of_transformers_writes_with_its_own_tokenizer(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    assert not is_ours(folder)
    writer = load_export(folder, torch.device("cpu"))
    assert writer.stop_token == 256
    tokens = torch.arange(8)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits[..., :257]
    assert torch.allclose(writer.student.logits(writer.student(tokens)), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["Gemma2", "Cohere", "Granite"])
def test_what_a_model_does_behind_its_head_is_followed(tmp_path: Path, family: str) -> None:
    student = load_plain(save_family(family, tmp_path), 257)
    tokens = torch.arange(8)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention_of(family))(tokens).logits
    assert student.logit_transform is not None
    assert torch.allclose(student.logits(student(tokens)), expected[..., :257], atol=1e-5)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    (folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="not a causal LM that transformers can load"):
        load_plain(folder, 257)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="its tokenizer is not readable"):
        load_export(folder, torch.device("cpu"))
