"""What transformers cut is whole again; over real processes test_group.py shows it."""

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from teacher_cache.teacher.parallel.whole import keep_ends_whole, whole, whole_one_by_one

SIZES = {
    "hidden_size": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
}


def test_a_plain_tensor_is_itself_and_names_come_in_order() -> None:
    tensors = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert whole(tensors["a"]) is tensors["a"]
    assert [(name, len(tensor)) for name, tensor in whole_one_by_one(tensors)] == [("a", 3), ("b", 2)]


def test_the_ends_of_a_model_lose_what_gathers_for_them_and_stay_tied() -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).eval()
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        expected = model(tokens).logits
    model.lm_head.forward = lambda states: nn.Linear.forward(model.lm_head, states) + 1
    keep_ends_whole(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)
