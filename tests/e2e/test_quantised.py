"""Caches of quantised teachers say what transformers' own forward pass says, where the packages for them are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from delta_common.errors import UserError
from teacher_cache import open_cache
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings, TeacherSettings
from teacher_cache.teacher.load import load_teacher
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family
from tests.helpers.quantised import save_compressed, save_fp8
from tests.helpers.tokenizers_for_tests import byte_tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}

# What packages for quantisation warn of on import is not ours.
pytestmark = pytest.mark.filterwarnings("default")


def four_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def whole_numbers() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def save_quantised(folder: Path, config: Any) -> Path:
    plain = save_family("Llama", folder / "plain", **SIZES)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder / "packed")
    byte_tokenizer().save_pretrained(folder / "packed")
    return folder / "packed"


def packed_by(name: str, folder: Path) -> Path:
    """A checkpoint in a format, by the name that transformers has for it; skips where its package is not installed."""
    if name == "fp8":
        save_fp8(folder)
        return folder
    pytest.importorskip(name.replace("-", "_"))
    if name == "compressed-tensors":
        return save_compressed(folder)
    configs: dict[str, Callable[[], Any]] = {"bitsandbytes": four_bits, "torchao": whole_numbers}
    return save_quantised(folder, configs[name]())


@pytest.mark.parametrize("name", ["fp8", "bitsandbytes", "torchao", "compressed-tensors"])
def test_a_cache_of_packed_weights_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    """Also after the teacher's digest was taken, which lists the weights."""
    teacher = packed_by(name, tmp_path / "teacher")
    said = {
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "corpus": {"source": str(write_text_corpus(tmp_path, documents=8))},
        "rows": {"seq_len": 24, "count": 6},
        "targets": {"top_k": 257, "samples": 0, "value_dtype": "float32"},
        "compute": {"batch_size": 6},
    }
    build(BuildSettings.model_validate(said), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    rows = cache.rows(range(len(cache)))
    tokens, mask = torch.from_numpy(rows.tokens.astype(np.int64))[:, :-1], torch.from_numpy(rows.loss_mask)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
        logits = model(tokens, use_cache=False).logits[..., : cache.manifest.vocab_size]
    apart = (torch.from_numpy(rows.values) - logits.sort(-1, descending=True).values).abs()[mask]
    assert float(apart.max()) <= 1e-5 * float(logits.abs().max())
    on_gpu = torch.cuda.is_available()
    assert cache.manifest.teacher.quantization == (None if name == "fp8" and not on_gpu else name)


def test_a_quantisation_that_rounds_tokens_together_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = save_quantised(tmp_path, BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(UserError, match=r"by what bitsandbytes makes of all tokens of a batch together"):
        load_teacher(TeacherSettings(model=str(teacher), dtype="float32"))
