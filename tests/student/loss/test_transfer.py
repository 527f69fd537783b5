"""Attention transfer: the target is softmax attention, only mixers learn, and they do."""

from dataclasses import replace

import pytest
import torch

from student.loss.transfer import transfer_sum
from student.model.transplant.body import body_tensors
from student.model.transplant.student import build_transplant
from tests.helpers.transplants import (
    FAMILIES,
    SHAPES,
    SMALL_HYBRID,
    frozen_of,
    small_config,
    small_teacher,
    small_tokens,
    small_transplant,
    starts_at,
)


def transfer_loss(errors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return transfer_sum(errors, mask) / mask.sum()


EVERYWHERE = torch.ones(2, 40, dtype=torch.bool)


@pytest.mark.parametrize("starts", [None, starts_at(40, [0, 9], [30])])
def test_a_full_window_is_no_error_away_from_softmax_attention(starts: torch.Tensor | None) -> None:
    student = small_transplant(replace(SMALL_HYBRID, window=40))
    assert transfer_loss(student.attention_transfer(small_tokens(), starts), EVERYWHERE) < 1e-20
    assert transfer_loss(small_transplant("hybrid").attention_transfer(small_tokens(), starts), EVERYWHERE) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_teachers_attention(family: str) -> None:
    teacher, outputs = small_teacher(family), []
    for layer in teacher.model.layers:
        layer.self_attn.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    student = build_transplant(small_config(family), frozen_of(teacher), body_tensors(teacher), SMALL_HYBRID, seed=0)
    with torch.no_grad():
        teacher(small_tokens())
        _, sizes = student.attention_transfer(small_tokens())
    expected = torch.stack([output.square().sum(-1) for output in outputs])
    assert torch.allclose(sizes, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_only_mixers_have_gradients_and_learn(name: str) -> None:
    student, tokens = small_transplant(name), small_tokens()
    new = student.new_names()
    for parameter_name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter_name in new)
    learned = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.02)
    losses = []
    for _ in range(30):
        loss = transfer_loss(student.attention_transfer(tokens), EVERYWHERE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in learned)


def test_gradients_reach_nothing_but_mixers() -> None:
    for name in SHAPES:
        student = small_transplant(name)
        transfer_loss(student.attention_transfer(small_tokens()), EVERYWHERE).backward()
        reached = {n for n, parameter in student.named_parameters() if parameter.grad is not None}
        assert reached
        assert all(".self_attn." in n for n in reached)


def test_the_mask_leaves_positions_out() -> None:
    student, tokens = small_transplant(), small_tokens()
    errors = student.attention_transfer(tokens)
    mask = EVERYWHERE.clone()
    mask[:, 20:] = False
    changed = torch.cat([tokens[:, :20], tokens[:, 20:].flip(1)], dim=1)
    found = transfer_loss(student.attention_transfer(changed), mask)
    assert torch.allclose(found, transfer_loss(errors, mask))
    assert not torch.allclose(found, transfer_loss(errors, EVERYWHERE))


def test_the_loss_is_a_mean_of_layers() -> None:
    errors = torch.tensor([[[1.0, 1.0]], [[4.0, 4.0]]])[:, :, None] * torch.ones(2, 2, 1, 2)
    errors[:, 1, :, :] *= torch.tensor([2.0, 1.0])[:, None, None]
    assert float(transfer_loss(errors, torch.ones(1, 2, dtype=torch.bool))) == pytest.approx((0.25 + 0.5) / 2)
