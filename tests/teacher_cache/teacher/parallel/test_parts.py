"""Sums in parts are what they are in float64, and another order of adding in float32."""

import torch

from teacher_cache.teacher.parallel.parts import summed_in_parts
from tests.helpers.families import family_model

TOKENS = torch.arange(12)[None]


def test_products_are_the_same_up_to_rounding_and_as_before_afterwards() -> None:
    model = family_model("Qwen2", attention_bias=True)
    with torch.inference_mode():
        plain = model(TOKENS).logits
        with summed_in_parts(model, 2):
            parts = model(TOKENS).logits
        assert torch.equal(model(TOKENS).logits, plain)
        exact, largest = model.double()(TOKENS).logits, plain.abs().max()
        with summed_in_parts(model, 3):
            assert (model(TOKENS).logits - exact).abs().max() <= 1e-12 * largest
    assert 0 < (parts - plain).abs().max() <= 1e-5 * largest


def test_a_model_without_a_plan_is_left_alone() -> None:
    model = family_model("GPT2")
    with torch.inference_mode():
        plain = model(TOKENS).logits
        with summed_in_parts(model, 2):
            assert torch.equal(model(TOKENS).logits, plain)
