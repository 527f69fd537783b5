"""An export as a transformers model: padding, the state it carries on, its loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from student.inference.hf import StudentState
from tests.helpers.small_students import small_model, tokens_of


def test_left_padding_leaves_no_trace_in_logits() -> None:
    model = small_model().double()
    rows = [tokens_of(1, length, seed=length)[0] for length in (5, 9, 1)]
    tokens, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, own in enumerate(rows):
        tokens[row, -len(own) :], mask[row, -len(own) :] = own, 1
    with torch.no_grad():
        for use_cache in (True, False):
            padded = model(tokens, attention_mask=mask, use_cache=use_cache).logits
            for row, own in enumerate(rows):
                alone = model(own[None], use_cache=use_cache).logits[0]
                assert torch.allclose(padded[row, -len(own) :], alone, rtol=0, atol=1e-9)


def test_a_continued_cache_equals_the_whole_text() -> None:
    model, tokens = small_model().double(), tokens_of(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).logits
        first = model(tokens[:, :5], attention_mask=mask[:, :5])
        assert isinstance(first.past_key_values, StudentState)
        second = model(tokens[:, 5:11], attention_mask=mask[:, :11], past_key_values=first.past_key_values)
        third = model(tokens[:, 11:], attention_mask=mask, past_key_values=second.past_key_values, logits_to_keep=1)
    assert third.past_key_values.get_seq_length() == 12
    found = torch.cat([first.logits, second.logits, third.logits], dim=1)
    seen = mask.bool()
    assert torch.allclose(found[seen], whole[seen], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("mask", "words"),
    [([[1, 1, 0, 1]], "between its tokens; pad on the left"), ([[1, 1, 1, 0]], "on the right, and cannot go on")],
)
def test_masks_that_a_recurrence_cannot_follow_are_refused(mask: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_model()(tokens_of(1, 4), attention_mask=torch.tensor(mask), use_cache=True)


def test_right_padding_leaves_the_positions_before_it_alone() -> None:
    model, tokens = small_model().double(), tokens_of(1, 6)
    with torch.no_grad():
        found = model(tokens, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), use_cache=False).logits
        assert torch.allclose(found[:, :4], model(tokens[:, :4]).logits, rtol=0, atol=1e-9)


def test_loss_and_its_gradients_are_those_of_the_next_tokens() -> None:
    model, tokens = small_model().double().train(), tokens_of(2, 8)
    labels = tokens.clone()
    labels[0, :3] = -100

    def expected_loss() -> Tensor:
        logits = model.student.logits(model.student(tokens))[:, :-1]
        return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = loss()
        return value, list(torch.autograd.grad(value, list(model.parameters())))

    found, ours = gradients(lambda: model(tokens, labels=labels).loss)
    expected, theirs = gradients(expected_loss)
    # transformers computes the loss in float32.
    assert torch.allclose(found.double(), expected, rtol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))
