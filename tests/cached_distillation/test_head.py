"""LM heads of any student."""

import pytest
import torch
from torch import nn

from cached_distillation.head import linear_head, real_head
from delta_common.errors import UserError


def test_padding_is_in_no_logits() -> None:
    head, states = nn.Linear(8, 40), torch.randn(3, 8)
    found = real_head(head, 33, "cpu")
    assert found.vocab_size == 33
    assert torch.allclose(found.logits(states), head(states)[:, :33])
    assert real_head(head, 40, "cpu").weight.data_ptr() == head.weight.data_ptr()


def test_logits_are_in_autocasts_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = real_head(nn.Linear(8, 40), 40, "cpu")
    assert found.weight.dtype == torch.bfloat16
    assert found.bias is not None
    assert found.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [41, 40 - 2000])
def test_another_vocabulary_is_refused(tokens: int) -> None:
    with pytest.raises(UserError, match="tokens: another vocabulary; the student and the cache's teacher must have"):
        real_head(nn.Linear(8, 40 if tokens > 0 else 3000), max(tokens, 40), "cpu")


def test_what_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match="take lm_head out of target_modules"):
        linear_head(nn.Sequential(nn.Linear(8, 40)))
    packed = nn.Linear(8, 40)
    packed.weight = nn.Parameter(torch.zeros(160, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="lm_head is quantised"):
        real_head(packed, 40, "cpu")
