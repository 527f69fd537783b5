"""Tiny seeded models of many families, with the byte tokenizer: teachers as transformers knows them."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.helpers.tokenizers_for_tests import byte_tokenizer

VOCAB = 288
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.4}
ENDS = {"bos_token_id": 256, "eos_token_id": 256}
OLD = {"vocab_size": VOCAB, "hidden_size": 32, "initializer_range": 0.4, **ENDS}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": SIZES | {"head_dim": 8},
    "Mistral": SIZES | {"sliding_window": 5},
    "Gemma": SIZES | {"head_dim": 8},
    "Gemma2": SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "final_logit_softcapping": 3.0},
    "Gemma3Text": SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5},
    "Phi": SIZES,
    "Phi3": SIZES,
    "GPTNeoX": SIZES,
    "StableLm": SIZES,
    "Qwen2Moe": SIZES | EXPERTS | {"shared_expert_intermediate_size": 16},
    "Mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Olmo2": SIZES,
    "Olmoe": SIZES | EXPERTS,
    "Cohere": SIZES | {"logit_scale": 0.0625},
    "Granite": SIZES | {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "GPT2": GPT2 | ENDS,
    "GPTJ": GPT2 | ENDS | {"rotary_dim": 8},
    "GPTBigCode": GPT2 | ENDS,
    "CodeGen": GPT2 | ENDS | {"rotary_dim": 8},
    "Bloom": OLD | {"n_layer": 3, "n_head": 4},
    "Falcon": OLD | {"num_hidden_layers": 3, "num_attention_heads": 4},
    "Mpt": {"vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128, **ENDS},
    "OPT": OLD
    | {"num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 128}
    | {"word_embed_proj_dim": 32, "pad_token_id": 256},
    "Mamba": OLD | {"num_hidden_layers": 3, "state_size": 8},
    "Mamba2": OLD
    | {"num_hidden_layers": 3, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Starcoder2": SIZES,
    "SmolLM3": SIZES,
    "Helium": SIZES | {"head_dim": 8},
    "Llama4Text": SIZES
    | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 64}
    | {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 64},
}
"""Configurations by the name of their class, without `Config`; sizes where a family's fields are called otherwise."""

WITHOUT_SDPA = {"Gemma2", "GPTJ", "CodeGen", "Bloom", "Mpt", "Mamba", "Mamba2"}
"""Families whose attention transformers computes in its eager form only."""


def family_model(name: str, **fields: Any) -> PreTrainedModel:
    """A model of a family with seeded random weights, its norms and biases too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**FAMILIES[name], **fields})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_family(name: str, folder: Path, **fields: Any) -> Path:
    """Write a model of a family and its tokenizer to `folder`."""
    family_model(name, **fields).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def attention_of(name: str) -> str:
    """The attention kernel that a family has on a CPU."""
    return "eager" if name in WITHOUT_SDPA else "sdpa"
