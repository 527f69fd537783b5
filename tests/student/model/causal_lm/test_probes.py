"""What is found out of a model by a few tokens."""

import pytest
import torch

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.model.causal_lm.probes import keeps_documents_apart, logit_transform, require_fit
from student.model.causal_lm.student import CausalLMStudent
from tests.helpers.families import family_model

PLAIN = {
    "Llama": {},
    "Granite": {"logits_scaling": 1.0},
    "Cohere": {"logit_scale": 1.0},
    "Gemma2": {"final_logit_softcapping": None},
}
CHANGED = {
    "Gemma2": ({"final_logit_softcapping": 30.0}, LogitTransform(cap=30.0)),
    "Cohere": ({"logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
    "Granite": ({"logits_scaling": 8.0}, LogitTransform(scale=0.125)),
}
APART = {"Llama": True, "Mistral": True, "GPT2": True, "Bloom": False, "OPT": False, "Mamba": False, "Mamba2": False}


def student_of(family: str, **fields: object) -> CausalLMStudent:
    return CausalLMStudent(family_model(family, **fields), 280).eval()


@pytest.mark.parametrize("family", PLAIN)
def test_what_changes_logits_behind_the_head_is_found(family: str) -> None:
    assert logit_transform(student_of(family, **PLAIN[family]), "it") is None
    if family in CHANGED:
        fields, transform = CHANGED[family]
        assert logit_transform(student_of(family, **fields), "it") == transform


def test_what_a_configuration_does_not_name_is_one_line() -> None:
    student = student_of("Cohere", logit_scale=0.5)
    student.model.config.logit_scale = 0.25
    with pytest.raises(UserError, match="it: the student changes its logits behind lm_head in a way that its config"):
        require_fit(student, row=8, documents=False, where="it")
    student.model.logit_scale = 0.25
    require_fit(student, row=8, documents=False, where="it")
    assert student.logit_transform == LogitTransform(scale=0.25)


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
