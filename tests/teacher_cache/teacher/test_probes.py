"""Models that cannot serve as teachers are refused before anything is built."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BitsAndBytesConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.parts import decoder, decoder_layers, output_head
from teacher_cache.teacher.probes import Subject, embedding_scale, require_teacher
from tests.helpers.families import SIZES, attention_of, family_model, save_family


def subject(model: nn.Module, count: int = 3) -> Subject:
    body = decoder(model, "it")
    layers = decoder_layers(body, count, "it")
    return Subject(model, body, output_head(model, "it"), layers, "it", "float32", 257)


LITTLE = SIZES | {"initializer_range": 0.02}
"""Weights as small as before training, whose logits are far below any cap."""
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MULTIPLIED = LITTLE | MAMBA | {"mamba_chunk_size": 8, "lm_head_multiplier": 0.25}
CAPPED = LITTLE | {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0}
TRANSFORMED = {
    "soft-capped": (Gemma2Config(**CAPPED), LogitTransform(cap=30.0)),
    "scaled": (CohereConfig(**LITTLE | {"logit_scale": 0.0625}), LogitTransform(scale=0.0625)),
    "hardly scaled": (CohereConfig(**LITTLE | {"logit_scale": 0.999}), LogitTransform(scale=0.999)),
    "divided": (GraniteConfig(**LITTLE | {"logits_scaling": 8.0}), LogitTransform(scale=0.125)),
    "multiplied": (FalconH1Config(**MULTIPLIED), LogitTransform(scale=0.25)),
    "not": (Gemma2Config(**CAPPED | {"final_logit_softcapping": None}), None),
}


def model_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_logits_that_are_transformed_are_noticed_however_small_they_are(name: str, dtype: torch.dtype) -> None:
    config, transform = TRANSFORMED[name]
    assert require_teacher(subject(model_of(config, dtype))) == transform


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_transform_that_the_configuration_does_not_name_is_refused(name: str) -> None:
    model = model_of(TRANSFORMED[name][0])
    model.register_forward_hook(lambda _model, _inputs, found: CausalLMOutputWithPast(logits=found.logits * 1.001))
    with pytest.raises(
        UserError, match="changes its logits after the LM head in a way that its configuration does not"
    ):
        require_teacher(subject(model))


@pytest.mark.parametrize("bias", [False, True])
def test_a_factor_before_the_head_is_one_of_the_logits_unless_there_is_a_bias(bias: bool) -> None:
    model = family_model("Llama")
    model.lm_head = nn.Linear(32, 288, bias=bias)
    model.config.logits_scaling = 4.0  # as MiniCPM
    model.lm_head.register_forward_pre_hook(lambda _head, inputs: (inputs[0] / 4,))
    if not bias:
        assert require_teacher(subject(model)) == LogitTransform(scale=0.25)
        return
    with pytest.raises(UserError, match="its LM head reads something else than the last hidden states"):
        require_teacher(subject(model))


def test_a_head_that_reads_something_else_is_noticed() -> None:
    model = family_model("Llama")
    assert require_teacher(subject(model)) is None
    model.lm_head.register_forward_pre_hook(lambda _head, inputs: (inputs[0] * 0.5,))
    with pytest.raises(UserError, match="its LM head reads something else than the last hidden states"):
        require_teacher(subject(model))


def test_a_bidirectional_model_is_refused() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=288, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    config.is_decoder = False
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match=r"its LM head reads something else"):
        require_teacher(subject(model))
    causal = family_model("Llama")
    for layer in causal.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UserError, match="is no causal language model"):
        require_teacher(subject(causal))
    causal.hf_quantizer, causal.config.quantization_config = object(), BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(UserError, match=r"by what bitsandbytes makes of all tokens of a batch together \(as LLM.int8"):
        require_teacher(subject(causal))


def test_a_list_of_the_right_length_that_is_not_the_layers_is_refused() -> None:
    model = family_model("Llama")
    model.model.tower = nn.ModuleList([nn.Identity() for _ in range(3)])
    found = subject(model)
    wrong = Subject(model, found.body, found.head, model.model.tower, "it", "float32", 257)
    with pytest.raises(UserError, match="is not its decoder layers"):
        require_teacher(wrong)
    inner = nn.ModuleList([layer.mlp for layer in model.model.layers])
    with pytest.raises(UserError, match="is not its decoder layers"):
        require_teacher(Subject(model, found.body, found.head, inner, "it", "float32", 257))


def test_numbers_that_are_not_finite_name_the_precision(tmp_path: Path) -> None:
    save_family("Llama", tmp_path)
    model = family_model("Llama")
    model.model.layers[1].mlp.down_proj.weight.data *= 3e4
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not finite in float16.*set teacher.dtype to bfloat16 or float32"):
        load_teacher(TeacherSettings(model=str(tmp_path), dtype="float16"))


def test_an_encoder_decoder_is_refused() -> None:
    model = family_model("Llama")
    model.config.is_encoder_decoder = True
    with pytest.raises(UserError, match="an encoder-decoder"):
        require_teacher(subject(model))


@pytest.mark.parametrize(("name", "scale"), [("Gemma", 32**0.5), ("Granite", 12.0), ("Llama", 1.0)])
def test_a_scaled_embedding_is_known(name: str, scale: float) -> None:
    assert embedding_scale(subject(family_model(name))) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("name", ["GPT2", "Bloom"])
def test_an_embedding_that_is_more_than_scaled_is_known_too(name: str) -> None:
    assert attention_of(name) in ("sdpa", "eager")
    assert embedding_scale(subject(family_model(name))) is None
