"""What a folder of transformers is written from; `tests/e2e/test_causal_lm.py` exports whole runs."""

import pytest
import torch

from student.export.plain import _around
from student.model.causal_lm.student import build_causal_lm
from tests.helpers.families import family_model


@pytest.mark.parametrize(("family", "tied"), [("Llama", True), ("Llama", False), ("Phi", False)])
def test_the_teachers_matrices_have_the_models_names(family: str, tied: bool) -> None:
    config = family_model(family, tie_word_embeddings=tied).config.to_dict()
    with torch.device("meta"):
        student = build_causal_lm(config, 280, seed=0)
    frozen = {"embedding": torch.zeros(288, 32), "lm_head": torch.ones(288, 32), "lm_head_bias": torch.ones(288)}
    if tied:
        del frozen["lm_head"]
    if family == "Llama":
        del frozen["lm_head_bias"]
    found = _around(student, frozen)
    wanted = {"model.embed_tokens.weight": "embedding", "lm_head.weight": "lm_head", "lm_head.bias": "lm_head_bias"}
    assert found.keys() == {name for name, ours in wanted.items() if ours in frozen}
    assert all(found[name] is frozen[wanted[name]] for name in found)
