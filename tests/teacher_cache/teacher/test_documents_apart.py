"""A teacher is refused if a document sees the one before it in its row, in batches as large as those of the build."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.documents_apart import _same, require_documents_apart
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import TeacherStates
from tests.helpers.families import attention_of, save_family


def test_a_kernel_that_keeps_documents_apart_in_single_rows_only_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' flash attention is."""
    settings = TeacherSettings(model=str(save_family("Llama", tmp_path)), dtype="float32")
    teacher = load_teacher(settings)
    run = teacher.states

    def blind_in_batches(tokens: Tensor, *, document_start: Tensor | None = None, **more: bool) -> TeacherStates:
        return run(tokens, document_start=document_start if len(tokens) == 1 else None, **more)

    require_documents_apart(teacher, settings, 4)
    monkeypatch.setattr(teacher, "states", blind_in_batches)
    require_documents_apart(teacher, settings, 1)
    with pytest.raises(UserError, match=r"in batches of 4; set rows.context to row .*or compute.batch_size to 1"):
        require_documents_apart(teacher, settings, 4)


@pytest.mark.parametrize("name", ["Mamba", "Bloom"])
def test_a_family_that_knows_no_packed_rows_is_refused_in_any_batch(name: str, tmp_path: Path) -> None:
    where, attention = str(save_family(name, tmp_path)), attention_of(name)
    settings = TeacherSettings(model=where, dtype="float32", attention=attention)
    teacher = load_teacher(settings)
    said = (
        f"rows.context document: teacher {where} with attention {attention} does not keep documents in a row apart in "
        "batches of 1; set rows.context to row (of packed conversations, rows.mode to document), or teacher.attention "
        "to sdpa"
    )
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        require_documents_apart(teacher, settings, 1)
    with pytest.raises(UserError, match="in batches of 2"):
        require_documents_apart(teacher, settings, 2)


@pytest.mark.parametrize("seen", [0.1, 0.2])
def test_states_in_16_bits_may_be_rounded_apart_by_less_than_a_seventh_of_what_leaks(seen: float) -> None:
    """One odd token's large state, rounded otherwise in a batch; a fifth of the leak is no rounding."""
    alone, leak = torch.ones(4, 8), torch.zeros(4, 8)
    leak[1, 3] = 5.0
    for rounded in (True, False):
        assert _same(alone + seen * leak, alone, alone + leak, rounded=rounded) == (rounded and seen < 0.15)
