"""The operations of a training step are those that PyTorch counts, where all of them are products with weights."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from delta_common.machine.matrix_work import Operations
from student.model.causal_lm.student import CausalLMStudent
from student.model.operations import training_operations
from student.model.student import Student
from tests.helpers.families import family_model
from tests.helpers.small_students import VOCAB, WIDTH, small_student

KINDS = ("xlstm", "transplant", "hybrid")


def body_size(student: Student) -> int:
    return sum(parameter.numel() for parameter in student.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("kind", KINDS)
def test_six_per_trained_entry_and_four_per_entry_of_the_frozen_head(kind: str) -> None:
    student = small_student(kind)
    assert training_operations(student) == Operations(6 * body_size(student), 4 * VOCAB * WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_four_where_a_parameter_is_frozen(kind: str) -> None:
    student = small_student(kind).requires_grad_(False)
    assert training_operations(student) == Operations(4 * body_size(student), 4 * VOCAB * WIDTH)


def test_what_is_trained_beside_the_student_is_not_its_own() -> None:
    student = small_student()
    before = training_operations(student)
    student.state_map = torch.nn.Linear(WIDTH, WIDTH)
    assert training_operations(student) == before


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_students_own_head_is_trained_and_its_embedding_is_no_product(family: str) -> None:
    """Against PyTorch's count: Llama's head is another matrix than its embedding, GPT-2's the same."""
    student = CausalLMStudent(family_model(family), 280)
    operations, own_head = training_operations(student), student.own_head
    assert operations is not None
    assert own_head is not None
    assert operations.counted == 6 * own_head.numel()
    tokens = torch.arange(24).view(2, 12)
    with FlopCounterMode(display=False) as counter:
        functional.linear(student(tokens), own_head).square().mean().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(counted[kind] for kind in (torch.ops.aten.mm, torch.ops.aten.addmm) if kind in counted)
    assert operations.total(24, 24) == products


def test_a_student_with_experts_does_not_tell() -> None:
    assert training_operations(CausalLMStudent(family_model("Qwen2Moe"), 280)) is None
