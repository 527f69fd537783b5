"""What is found out of a model by a few tokens."""

import pytest
import torch

from delta_common.errors import UserError
from student.model.causal_lm.probes import has_plain_logits, keeps_documents_apart, require_fit
from student.model.causal_lm.student import CausalLMStudent
from tests.helpers.families import family_model

PLAIN = {
    "Llama": {},
    "Granite": {"logits_scaling": 1.0},
    "Cohere": {"logit_scale": 1.0},
    "Gemma2": {"final_logit_softcapping": None},
}
CHANGED = {
    "Gemma2": {"final_logit_softcapping": 30.0},
    "Cohere": {"logit_scale": 0.0625},
    "Granite": {"logits_scaling": 8.0},
}
APART = {"Llama": True, "Mistral": True, "GPT2": True, "Bloom": False, "OPT": False, "Mamba": False, "Mamba2": False}


def student_of(family: str, **fields: object) -> CausalLMStudent:
    return CausalLMStudent(family_model(family, **fields), 280).eval()


@torch.no_grad()
def test_logits_changed_behind_the_head_are_noticed() -> None:
    assert all(has_plain_logits(student_of(family, **fields)) for family, fields in PLAIN.items())
    assert not any(has_plain_logits(student_of(family, **fields)) for family, fields in CHANGED.items())


@torch.no_grad()
@pytest.mark.parametrize("family", APART)
def test_models_that_see_across_documents_are_told(family: str) -> None:
    assert keeps_documents_apart(student_of(family)) == APART[family]


def test_a_student_that_fits_is_left_ready_to_train() -> None:
    student = student_of("Llama")
    require_fit(student, row=128, documents=True, where="it")
    assert student.training
    with pytest.raises(UserError, match="it: takes 128 positions, the cache's rows have 129"):
        require_fit(student, row=129, documents=True, where="it")
    require_fit(student_of("Mamba"), row=8, documents=False, where="it")
