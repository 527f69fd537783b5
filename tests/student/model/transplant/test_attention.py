"""Layers that keep their teacher's attention: the whole document is seen, in one piece or token by token."""

from dataclasses import replace

import pytest
import torch

from delta_common.errors import UserError
from student.model.shape import StudentSettings
from student.model.transplant.body import body_tensors
from student.model.transplant.student import build_transplant
from tests.helpers.transplants import (
    FAMILIES,
    SMALL_HYBRID,
    frozen_of,
    moved_mixers,
    small_config,
    small_teacher,
    small_tokens,
    small_transplant,
    starts_at,
)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_that_keep_their_attention_give_what_the_teachers_do(family: str) -> None:
    """All but the first keep it, and that one has a window as wide as the row: also token by token and in parts."""
    teacher, tokens = small_teacher(family), small_tokens()
    shape = replace(SMALL_HYBRID, window=40, attention_at=(1, 2))
    student = build_transplant(small_config(family), frozen_of(teacher), body_tensors(teacher), shape, seed=0)
    moved_mixers(student)
    expected, parts, state = teacher(tokens).logits, [], None
    for span in (slice(0, 17), slice(17, 18), slice(18, 19), slice(19, 40)):
        hidden_states, state = student.prefill(tokens[:, span], state)
        parts.append(student.logits(hidden_states))
    for found in (student.logits(student(tokens)), torch.cat(parts, dim=1)):
        assert (found - expected).abs().max() < 1e-4
    keys, values = state["layer_1"]["seen"]
    assert keys.shape[2] == values.shape[2] == 40


@torch.no_grad()
def test_rows_that_go_on_at_different_places_of_their_documents_see_their_own_alone() -> None:
    student, tokens = small_transplant(replace(SMALL_HYBRID, attention_at=(0, 2))), small_tokens(2, 30)
    starts = starts_at(30, [12], [25])
    _, state = student.prefill(tokens[:, :20], document_start=starts[:, :20])
    found, _ = student.prefill(tokens[:, 20:], state, starts[:, 20:])
    apart = [
        student(tokens[:1, 12:])[0, 8:],
        torch.cat([student(tokens[1:, :25])[0, 20:], student(tokens[1:, 25:])[0]]),
    ]
    assert torch.allclose(found, torch.stack(apart), rtol=0, atol=1e-5)


def test_the_state_grows_by_the_layers_that_keep_it() -> None:
    student, sizes = small_transplant(replace(SMALL_HYBRID, attention_at=(0, 2))), []
    for length in (10, 30):
        with torch.no_grad():
            _, state = student.prefill(small_tokens(2, length))
        sizes.append(state["layer_2"]["seen"][0].shape[2])
        assert "seen" not in state["layer_1"]
    assert sizes == [10, 30]


def test_only_a_student_with_its_teachers_layers_keeps_some() -> None:
    with pytest.raises(ValueError, match=r"model\.attention_at: model\.preset paper has no layers of its teacher"):
        StudentSettings(attention_at=(1,))
    with pytest.raises(UserError, match=r"model\.attention_at 7: the teacher has the layers 0 to 2"):
        small_transplant(replace(SMALL_HYBRID, attention_at=(7,)))
