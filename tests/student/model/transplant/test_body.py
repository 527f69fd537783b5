"""A teacher's body: what is in it, and what does not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from delta_common.errors import UserError
from student.model.transplant.body import body_tensors
from student.model.transplant.student import build_transplant
from tests.helpers.transplants import SMALL_TRANSPLANT, frozen_of, small_config, small_teacher


def _body(**fields: Any) -> dict[str, Tensor]:
    return body_tensors(small_teacher("qwen2", **fields))


def test_it_is_all_but_embedding_and_head() -> None:
    teacher = small_teacher("qwen2")
    names = set(body_tensors(teacher))
    assert {"layers.0.self_attn.q_proj.bias", "layers.2.mlp.up_proj.weight", "norm.weight"} <= names
    rest = {name for name in teacher.state_dict() if name.removeprefix("model.") not in names}
    assert rest == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body.pop("norm.weight"), "norm.weight is missing from the body"),
        (lambda body: body.update(extra=torch.ones(1)), "extra is not in the configured teacher"),
        (lambda body: body.update({"norm.weight": torch.ones(5)}), r"norm.weight has shape \(5,\).* says \(32,\)"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    body, teacher = _body(), small_teacher("qwen2")
    change(body)
    with pytest.raises(UserError, match=words) as caught:
        build_transplant(small_config("qwen2"), frozen_of(teacher), body, SMALL_TRANSPLANT, seed=0)
    assert "\n" not in str(caught.value)


def test_training_leaves_the_callers_tensors_alone() -> None:
    teacher = small_teacher("qwen2")
    body = body_tensors(teacher)
    student = build_transplant(small_config("qwen2"), frozen_of(teacher), body, SMALL_TRANSPLANT, seed=0)
    with torch.no_grad():
        student.norm.weight.zero_()
    assert body["norm.weight"].abs().min() > 0
