"""Where a model keeps its head, its layers and its vocabulary."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import FineGrainedFP8Config

from delta_common.errors import UserError
from teacher_cache.teacher.parts import (
    decoder,
    decoder_layers,
    head_count,
    output_head,
    quantization,
    real_vocab_size,
    state_of,
)
from tests.helpers.families import family_model
from tests.helpers.tokenizers_for_tests import byte_tokenizer


@pytest.mark.parametrize("name", ["Llama", "OPT", "Mpt", "Llama4Text"])
def test_layers_are_found_wherever_they_are(name: str) -> None:
    model = family_model(name)
    layers = decoder_layers(decoder(model, name), 3, name)
    assert len(layers) == 3
    assert all(type(layer).__name__.startswith(name.removesuffix("Text")) for layer in layers)


def test_a_model_without_such_a_list_is_refused() -> None:
    with pytest.raises(UserError, match="no list of 3 decoder layers found"):
        decoder_layers(nn.ModuleList([nn.Linear(2, 2)]), 3, "it")


@pytest.mark.parametrize("around", [lambda state: state, lambda state: (state, None), lambda state: [state]])
def test_a_layers_states_are_found_in_what_it_gives(around: Callable[[Tensor], object]) -> None:
    state = torch.ones(1, 2, 3)
    assert state_of(around(state)) is state


@pytest.mark.parametrize("packed", [torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("part", "words"), [("lm_head", "LM head"), ("model.embed_tokens", "embedding")])
def test_a_quantised_end_is_refused(part: str, words: str, packed: torch.dtype) -> None:
    model = family_model("Llama", tie_word_embeddings=False)
    assert output_head(model, "it") is model.lm_head
    module = model.get_submodule(part)
    module.weight = nn.Parameter(module.weight.to(packed), requires_grad=False)
    with pytest.raises(UserError, match=f"teacher.model it: its {words} is quantised, which students share with it"):
        output_head(model, "it")


def test_packed_weights_are_known_by_how() -> None:
    model = family_model("Llama")
    assert quantization(model) is None
    model.hf_quantizer, model.config.quantization_config = object(), FineGrainedFP8Config()
    assert quantization(model) == "fp8"


def test_an_output_layer_that_is_no_matrix_is_refused() -> None:
    model = SimpleNamespace(get_output_embeddings=lambda: nn.Identity())
    with pytest.raises(UserError, match="its output layer is a Identity"):
        output_head(model, "it")


@pytest.mark.parametrize(("heads", "expected"), [(4, 4), (None, 2), (0, 2)])
def test_models_without_attention_have_heads_of_64(heads: int | None, expected: int) -> None:
    assert head_count(SimpleNamespace(num_attention_heads=heads, hidden_size=128)) == expected
    assert head_count(SimpleNamespace(hidden_size=32)) == 1


def test_an_added_token_without_a_row_is_left_out_and_others_are_refused() -> None:
    tokenizer = byte_tokenizer()
    assert real_vocab_size(tokenizer, 288, "it") == 257
    with pytest.raises(UserError, match="has 257 tokens but its LM head only 200 rows"):
        real_vocab_size(tokenizer, 200, "it")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert real_vocab_size(tokenizer, 257, "it") == 257
    assert real_vocab_size(tokenizer, 288, "it") == 258
