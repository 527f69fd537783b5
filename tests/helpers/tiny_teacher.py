"""A tiny causal language model with a byte tokenizer, seeded, saved as transformers saves models."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.helpers.tokenizers_for_tests import byte_tokenizer

PADDED_VOCAB = 288
LAYERS = 3


def save_tiny_teacher(folder: Path, **config: Any) -> Path:
    """Write model and tokenizer to `folder`; keyword arguments replace fields of the configuration."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": PADDED_VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 256,
        **config,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**fields))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
