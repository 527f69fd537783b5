"""The teacher beside its student: the one it learnt from, or one clear line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from student.evaluate.tasks.teacher import KnownTeacher, known_teacher, load_beside
from student.inference.load import Writer
from student.inference.plain import load_plain
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.tokenizer import load_tokenizer
from tests.helpers.causal_students import save_llama
from tests.helpers.families import save_family
from tests.helpers.task_writers import small_writer
from tests.helpers.tokenizers_for_tests import EOS, qwen_sized_tokenizer


def digest(folder: Path, dtype: str) -> str:
    return load_teacher(TeacherSettings(model=str(folder), dtype=dtype)).identity().weights_sha256  # type: ignore[arg-type]


@pytest.fixture
def student(tmp_path: Path) -> Writer:
    return small_writer("xlstm", tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_gives_the_logits_of_its_model(tiny_teacher: Path, student: Writer, dtype: str) -> None:
    known = KnownTeacher(str(tiny_teacher), digest(tiny_teacher, dtype), None, dtype)  # type: ignore[arg-type]
    teacher = load_beside(known, None, student)
    assert teacher is not None
    assert teacher.stop_token == EOS
    plain = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=getattr(torch, dtype)).float().eval()
    tokens = torch.tensor([[1, 2, 3, 200]])
    with torch.no_grad():
        found = teacher.student.logits(teacher.student(tokens))
        assert torch.allclose(found, plain(tokens).logits[..., : EOS + 1], atol=1e-4)


@pytest.mark.parametrize("family", ["Gemma2", "Cohere"])
def test_what_a_teacher_makes_of_its_logits_is_done(family: str, student: Writer, tmp_path: Path) -> None:
    """And attention is computed as the family has it."""
    folder = save_family(family, tmp_path / family)
    teacher = load_beside(None, str(folder), Writer(student.student, load_tokenizer(str(folder), family), EOS))
    assert teacher is not None
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
    tokens = torch.tensor([[1, 2, 3, 200]])
    with torch.no_grad():
        found, _ = teacher.student.prefill(tokens)
        assert torch.allclose(teacher.student.logits(found), plain(tokens).logits[..., : EOS + 1], atol=1e-4)


def test_a_precision_that_is_not_known_is_found(tiny_teacher: Path, student: Writer) -> None:
    assert load_beside(KnownTeacher("moved", digest(tiny_teacher, "float16")), str(tiny_teacher), student) is not None


def test_other_weights_are_refused(tiny_teacher: Path, student: Writer, tmp_path: Path) -> None:
    known = KnownTeacher("its own", digest(tiny_teacher, "float32"), None, "float32")
    other = save_llama(tmp_path / "llama")
    with pytest.raises(UserError, match=f"--teacher {other}: its weights are not those of its own"):
        load_beside(known, str(other), student)


def test_another_tokenizer_is_refused(tiny_teacher: Path, student: Writer) -> None:
    other = Writer(student.student, qwen_sized_tokenizer(), None)
    with pytest.raises(UserError, match="another tokenizer than the student's"):
        load_beside(None, str(tiny_teacher), other)


def test_a_teacher_that_has_moved_is_one_line(student: Writer) -> None:
    with pytest.raises(UserError, match="--teacher FOLDER says where the student's teacher lies"):
        load_beside(KnownTeacher("/nowhere/teacher", "0", None, "float32"), None, student)


def test_a_model_that_learnt_from_none_stands_alone(tiny_teacher: Path, student: Writer) -> None:
    assert known_teacher(tiny_teacher) is None
    assert load_beside(None, None, student) is None
    given = load_beside(None, str(tiny_teacher), Writer(load_plain(tiny_teacher, EOS + 1), student.tokenizer, EOS))
    assert given is not None
