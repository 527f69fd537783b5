"""An export as a transformers model: padding, the state it carries on, its loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Trainer, TrainingArguments

from student.inference.hf import StudentState
from tests.helpers.small_students import ROUNDING, small_model, tokens_of

KINDS = pytest.mark.parametrize("kind", ROUNDING)


@KINDS
def test_left_padding_leaves_no_trace_in_logits(kind: str) -> None:
    model = small_model(kind).double()
    rows = [tokens_of(1, length, seed=length)[0] for length in (5, 9, 1)]
    tokens, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, own in enumerate(rows):
        tokens[row, -len(own) :], mask[row, -len(own) :] = own, 1
    with torch.no_grad():
        for use_cache in (True, False):
            padded = model(tokens, attention_mask=mask, use_cache=use_cache).logits
            for row, own in enumerate(rows):
                alone = model(own[None], use_cache=use_cache).logits[0]
                assert torch.allclose(padded[row, -len(own) :], alone, rtol=0, atol=ROUNDING[kind])


@KINDS
def test_a_continued_cache_equals_the_whole_text(kind: str) -> None:
    model, tokens = small_model(kind).double(), tokens_of(2, 12)
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
    assert torch.allclose(found[seen], whole[seen], rtol=0, atol=ROUNDING[kind])


@pytest.mark.parametrize(
    ("mask", "words"),
    [([[1, 1, 0, 1]], "between its tokens; pad on the left"), ([[1, 1, 1, 0]], "on the right, and cannot go on")],
)
def test_masks_that_a_recurrence_cannot_follow_are_refused(mask: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_model()(tokens_of(1, 4), attention_mask=torch.tensor(mask), use_cache=True)


@KINDS
def test_a_state_after_right_padding_cannot_go_on(kind: str) -> None:
    model, mask = small_model(kind), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        state = model(tokens_of(2, 4), attention_mask=mask).past_key_values
        with pytest.raises(ValueError, match="on the right, and cannot go on"):
            model(tokens_of(2, 1), past_key_values=state)


@KINDS
def test_right_padding_leaves_the_positions_before_it_alone(kind: str) -> None:
    model, tokens = small_model(kind).double(), tokens_of(1, 6)
    with torch.no_grad():
        found = model(tokens, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), use_cache=False).logits
        assert torch.allclose(found[:, :4], model(tokens[:, :4]).logits, rtol=0, atol=ROUNDING[kind])


@KINDS
def test_loss_and_its_gradients_are_those_of_the_next_tokens(kind: str) -> None:
    model, tokens = small_model(kind).double().train(), tokens_of(2, 8)
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


def packed(*lengths: int) -> tuple[Tensor, Tensor]:
    """Tokens (1, T) of documents of these lengths, and their positions."""
    return tokens_of(1, sum(lengths), seed=7), torch.cat([torch.arange(length) for length in lengths])[None]


@KINDS
@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_documents_equal_themselves_alone(use_cache: bool, kind: str) -> None:
    model, (tokens, positions) = small_model(kind).double(), packed(5, 1, 6)
    with torch.no_grad():
        found = model(tokens, position_ids=positions, use_cache=use_cache).logits
        alone = [model(part).logits for part in tokens.split([5, 1, 6], dim=1)]
    assert torch.allclose(found, torch.cat(alone, dim=1), rtol=0, atol=ROUNDING[kind])


@KINDS
def test_a_document_may_begin_where_a_text_goes_on(kind: str) -> None:
    model, (tokens, positions) = small_model(kind).double(), packed(5, 4)
    with torch.no_grad():
        state = model(tokens[:, :5]).past_key_values
        found = model(tokens[:, 5:6], position_ids=positions[:, 5:6], past_key_values=state).logits
        assert torch.allclose(found, model(tokens[:, 5:6]).logits, rtol=0, atol=ROUNDING[kind])


@KINDS
def test_blocks_computed_again_give_the_same_gradients(kind: str) -> None:
    tokens = tokens_of(2, 8)

    def gradients(reentrant: bool | None) -> list[Tensor]:
        model = small_model(kind).double().train()
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model(tokens, labels=tokens).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for ours in (gradients(True), gradients(False)):
        for one, other in zip(ours, gradients(None), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


@KINDS
def test_a_tuple_comes_back_where_one_is_asked_for(kind: str) -> None:
    model, tokens = small_model(kind), tokens_of(1, 4)
    with torch.no_grad():
        logits, state = model(input_ids=tokens, return_dict=False)
    assert logits.shape[:2] == (1, 4)
    assert isinstance(state, StudentState)


@KINDS
def test_the_head_applied_to_the_base_models_states_gives_the_logits(kind: str) -> None:
    model, tokens = small_model(kind, head_bias=True), tokens_of(1, 4)
    model.student.lm_head_bias = torch.randn(model.config.padded_vocab_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(states), model(tokens, use_cache=False).logits)


@KINDS
def test_transformers_own_trainer_trains_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)  # DeepSpeed leaves them behind where a test before this one trained
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(4, 12)]
    settings = TrainingArguments(
        str(tmp_path),
        report_to=[],
        use_cpu=True,
        max_steps=2,
        save_strategy="no",
        activation_checkpointing=True,
        seed=1,
    )
    model = small_model(kind)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = Trainer(model=model, args=settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert all(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    with torch.no_grad():
        expected = float(model.eval()(tokens_of(4, 12), labels=tokens_of(4, 12)).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@KINDS
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values: a student keeps no DynamicCache"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "inputs_embeds: .* give input_ids"),
        ({"output_hidden_states": True}, "output_hidden_states: a student returns none"),
        ({"output_attentions": True}, "output_attentions: a student returns none"),
        ({"position_ids": torch.arange(3)[None]}, r"position_ids: of shape \(1, 3\); give \(1, 4\)"),
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, "cu_seq_lens_q: .* give them too"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, r"attention_mask: of shape \(1, 1, 4, 4\)"),
        ({"input_ids": None}, "input_ids: no tokens; give one at least"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "input_ids: no tokens; give one at least"),
    ],
)
def test_what_a_student_cannot_take_is_one_line(given: dict[str, Any], words: str, kind: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_model(kind)(**{"input_ids": tokens_of(1, 4), **given})


def test_outputs_asked_for_by_the_configuration_are_refused_too() -> None:
    with pytest.raises(ValueError, match="output_hidden_states: a student returns none"):
        small_model(output_hidden_states=True)(tokens_of(1, 4))


def test_the_embedding_cannot_be_had_as_a_module() -> None:
    for asked in (lambda model: model.get_input_embeddings(), lambda model: model.resize_token_embeddings(50)):
        with pytest.raises(NotImplementedError, match=r"read model\.student\.embedding"):
            asked(small_model())
