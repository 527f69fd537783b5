"""Frozen matrices that become parameters in the middle of a training."""

from types import SimpleNamespace

import pytest
import torch

from experiments.train.unfreezing import SHARE_OF_RATE, unfreeze
from tests.helpers.small_students import small_student, tokens_of

RATE, WARM_UP = 0.01, 10


def test_the_matrices_train_at_a_share_of_the_rate_on_the_same_schedule() -> None:
    student = small_student()
    frozen = {name: getattr(student, name).clone() for name in ("embedding", "lm_head")}
    head_before = student.head
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    before = student.logits(student(tokens_of(2, 6)))
    unfreeze(SimpleNamespace(optimizer=optimizer, lr_scheduler=scheduler), student)
    torch.testing.assert_close(student.logits(student(tokens_of(2, 6))), before)
    names = dict(student.named_parameters()).keys()
    assert {"embedding", "lm_head"} <= names
    for step in range(WARM_UP):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([RATE * (step + 1) / WARM_UP, SHARE_OF_RATE * RATE * (step + 1) / WARM_UP])
        student.logits(student(tokens_of(2, 6, step))).square().mean().backward()
        optimizer.step()
        scheduler.step()
    for name, matrix in frozen.items():
        assert not torch.equal(getattr(student, name), matrix)
    assert torch.equal(head_before.weight, frozen["lm_head"][: len(head_before.weight)]), (
        "what was frozen keeps its values"
    )
