"""Tiny seeded models of many families, with the byte tokenizer: teachers as transformers knows them.

docs/teachers.md has a line for each; `tests/e2e/test_families.py` holds the two together.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

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
ENDS = {"bos_token_id": 256, "eos_token_id": 256}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "initializer_range": 0.4}
OLD = {"vocab_size": VOCAB, "hidden_size": 32, "initializer_range": 0.4, **ENDS}
XGLM = {"vocab_size": VOCAB, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64, **ENDS}
HEADS_OF_8 = SIZES | {"head_dim": 8}
LAYERS_OF_3, ATTENTION = {"num_hidden_layers": 3}, {"num_hidden_layers": 3, "num_attention_heads": 4}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
ROUTED |= {"n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4}
"""Multi-head latent attention."""
SHARED_EXPERT = {"shared_expert_intermediate_size": 16}

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
MAMBA2 = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
DELTA |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention", "conv"]}
GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
GEMMA2 = {"query_pre_attn_scalar": 8, "sliding_window": 5, "final_logit_softcapping": 3.0}

FAMILIES: dict[str, dict[str, Any]] = {
    # dense
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": HEADS_OF_8,
    "Mistral": SIZES | {"sliding_window": 5},
    "Gemma": HEADS_OF_8,
    "Gemma2": HEADS_OF_8 | GEMMA2,
    "Gemma3Text": HEADS_OF_8 | {"query_pre_attn_scalar": 8, "sliding_window": 5, "final_logit_softcapping": 3.0},
    "Gemma4Text": HEADS_OF_8
    | {"global_head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 3.0, "num_kv_shared_layers": 0}
    | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    | {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    "VaultGemma": HEADS_OF_8 | GEMMA2,
    "Phi": SIZES,
    "Phi3": SIZES,
    "GPTNeoX": SIZES,
    "StableLm": SIZES,
    "Olmo": SIZES,
    "Olmo2": SIZES,
    "Olmo3": SIZES | SLIDING,
    "Cohere": SIZES | {"logit_scale": 0.0625},
    "Cohere2": SIZES | SLIDING | {"logit_scale": 0.25},
    "Granite": SIZES | GRANITE,
    "HyperCLOVAX": SIZES | {"logits_scaling": 0.125, "embedding_multiplier": 12.0},
    "MiniCPM3": SIZES | LATENT | {"q_lora_rank": 8, "scale_emb": 12.0, "dim_model_base": 8, "scale_depth": 1.4},
    "NanoChat": SIZES | {"final_logit_softcapping": 3.0},
    "Starcoder2": SIZES,
    "SmolLM3": SIZES,
    "Helium": HEADS_OF_8,
    "Glm": HEADS_OF_8,
    "Glm4": HEADS_OF_8,
    "Ernie4_5": SIZES,
    "Exaone4": SIZES | SLIDING,
    "HunYuanDenseV1": HEADS_OF_8,
    "SeedOss": HEADS_OF_8,
    "Nemotron": SIZES,
    "Apertus": SIZES,
    "Arcee": SIZES,
    "Persimmon": SIZES,
    "DiffLlama": SIZES,
    "BitNet": SIZES,
    "Doge": SIZES,
    "Jais2": SIZES,
    # older
    "GPT2": GPT2 | ENDS,
    "GPTJ": GPT2 | ENDS | {"rotary_dim": 8},
    "GPTNeo": OLD | {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 5},
    "GPTBigCode": GPT2 | ENDS,
    "CodeGen": GPT2 | ENDS | {"rotary_dim": 8},
    "Bloom": OLD | {"n_layer": 3, "n_head": 4},
    "Falcon": OLD | ATTENTION,
    "Mpt": {"vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128, **ENDS},
    "OPT": OLD | ATTENTION | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 256},
    "XGLM": XGLM,
    "BioGpt": OLD | ATTENTION | {"intermediate_size": 64},
    "OpenAIGPT": GPT2,
    "CTRL": GPT2 | {"dff": 64},
    # experts
    "Mixtral": SIZES | LOCAL_EXPERTS,
    "Qwen2Moe": SIZES | EXPERTS | SHARED_EXPERT,
    "Qwen3Moe": HEADS_OF_8 | EXPERTS,
    "Olmoe": SIZES | EXPERTS,
    "FlexOlmo": SIZES | EXPERTS,
    "DeepseekV2": SIZES | LATENT | ROUTED | {"q_lora_rank": None},
    "DeepseekV3": SIZES | LATENT | ROUTED | {"q_lora_rank": 8},
    "GptOss": HEADS_OF_8 | LOCAL_EXPERTS | SLIDING,
    "Llama4Text": HEADS_OF_8
    | {"num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 64}
    | {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 64},
    "GraniteMoe": SIZES | GRANITE | LOCAL_EXPERTS,
    "GraniteMoeShared": SIZES | GRANITE | LOCAL_EXPERTS | {"shared_intermediate_size": 16},
    "Glm4Moe": HEADS_OF_8 | ROUTED | {"n_shared_experts": 1},
    "Ernie4_5_Moe": SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "HunYuanMoEV1": HEADS_OF_8 | {"num_experts": 4, "moe_topk": 2},
    "Phimoe": SIZES | LOCAL_EXPERTS,
    "Dots1": SIZES | ROUTED | {"n_shared_experts": 1},
    "JetMoe": SIZES | LOCAL_EXPERTS | {"kv_channels": 8},
    "MiniMaxM2": HEADS_OF_8 | LOCAL_EXPERTS,
    "Cohere2Moe": SIZES | SLIDING | {"num_experts": 4, "num_experts_per_tok": 2, "logit_scale": 0.25},
    "Dbrx": {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, **ENDS}
    | {"ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}}
    | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "DeepseekV32": SIZES
    | LATENT
    | ROUTED
    | {"q_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
    "Afmoe": HEADS_OF_8 | EXPERTS | SLIDING | {"num_dense_layers": 1, "mup_enabled": True},
    # recurrences, alone and beside attention
    "Mamba": OLD | LAYERS_OF_3 | {"state_size": 8},
    "Mamba2": OLD | LAYERS_OF_3 | MAMBA2,
    "FalconMamba": OLD | LAYERS_OF_3 | {"state_size": 8},
    "Rwkv": {"vocab_size": VOCAB, "hidden_size": 32, "context_length": 128, **LAYERS_OF_3, **ENDS},
    "xLSTM": {"vocab_size": VOCAB, "hidden_size": 32, "num_heads": 4, "output_logit_soft_cap": 1.5}
    | LAYERS_OF_3
    | ENDS
    | {"chunkwise_kernel": "chunkwise--native_autograd", "sequence_kernel": "native_sequence__native"}
    | {"step_kernel": "native"},
    "RecurrentGemma": SIZES | {"lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 3.0},
    "Jamba": SIZES
    | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    "Bamba": SIZES | MAMBA | {"attn_layer_indices": [1]},
    "FalconH1": SIZES | MAMBA | {"mamba_d_ssm": 64, "embedding_multiplier": 3.0, "lm_head_multiplier": 0.25},
    "GraniteMoeHybrid": SIZES
    | GRANITE
    | MAMBA
    | LOCAL_EXPERTS
    | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention", "mamba"]},
    "Zamba2": SIZES
    | {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8}
    | {"num_hidden_layers": 4, "num_mem_blocks": 1, "hybrid_layer_ids": [1, 3], "layer_types": ["mamba", "hybrid"] * 2},
    "NemotronH": HEADS_OF_8
    | {"hybrid_override_pattern": "M*-", "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8}
    | {"n_groups": 1, "chunk_size": 8},
    "MiniMax": HEADS_OF_8 | LOCAL_EXPERTS | {"layer_types": DELTA["layer_types"], "block_size": 8},
    "Qwen3Next": HEADS_OF_8 | EXPERTS | SHARED_EXPERT | DELTA,
    "Qwen3_5Text": HEADS_OF_8 | DELTA,
    "OlmoHybrid": SIZES | {"layer_types": DELTA["layer_types"]},
    "Lfm2": SIZES | CONVOLUTION,
    "Lfm2Moe": SIZES | EXPERTS | CONVOLUTION | {"num_dense_layers": 1},
}
FAMILIES |= {
    # text beside images, of which the language model is taken
    "Gemma3": {"text_config": FAMILIES["Gemma3Text"], "vision_config": VISION, "mm_tokens_per_image": 4},
    "Llama4": {
        "text_config": FAMILIES["Llama4Text"],
        "vision_config": VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "Qwen3_5": {
        "text_config": FAMILIES["Qwen3_5Text"],
        "vision_config": {"hidden_size": 16, "depth": 1, "num_heads": 2, "intermediate_size": 32}
        | {"out_hidden_size": 32},
    },
}
"""Configurations by the name of their class, without `Config`; sizes where a family's fields are called otherwise."""

REFUSED: dict[str, dict[str, Any]] = {
    "Bert": OLD | ATTENTION | {"intermediate_size": 64},
    "XLNet": {"vocab_size": VOCAB, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
    "Gemma3nText": HEADS_OF_8
    | {"sliding_window": 5, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}
    | {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [64] * 4},
    "T5": {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "Bart": {"vocab_size": VOCAB, "d_model": 32, "decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 64}
    | {"encoder_ffn_dim": 64, "decoder_attention_heads": 4, "encoder_attention_heads": 4},
}
"""No teachers, as `FAMILIES`."""

WITHOUT_SDPA = {"Gemma2", "VaultGemma", "GPTJ", "GPTNeo", "CodeGen", "Bloom", "Mpt", "XGLM", "OpenAIGPT", "GptOss"}
WITHOUT_SDPA |= {"Mamba", "Mamba2", "FalconMamba", "Rwkv", "xLSTM", "XLNet"}
"""Families whose attention transformers computes in its eager form only."""


def family_model(name: str, **fields: Any) -> PreTrainedModel:
    """A model of a family with seeded random weights, its norms and biases too."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**(FAMILIES | REFUSED)[name], **fields})
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
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
