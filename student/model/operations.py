"""What a step of training takes in matrix products, from the student's weights."""

from delta_common.machine.matrix_work import Operations, has_experts, product_parameters, whole_size
from student.model.causal_lm.student import CausalLMStudent
from student.model.student import Student, is_beside

FORWARD = 2
"""Operations per entry of a matrix and position: a multiplication and an addition."""


def training_operations(student: Student) -> Operations | None:
    """Forward and backward, for the parameters that are trained now; None for a student with experts.

    6 per trained entry; 4 where it is frozen, as in most heads, which need no gradient of their own.
    """
    if has_experts(student):
        return None
    own_head = student.own_head if isinstance(student, CausalLMStudent) else None
    body = sum(
        _per_entry(parameter.requires_grad) * whole_size(parameter)
        for name, parameter in product_parameters(student)
        if parameter is not own_head and not is_beside(name)
    )
    if own_head is not None:
        return Operations(body, _per_entry(own_head.requires_grad) * whole_size(own_head))
    return Operations(body, _per_entry(trained=False) * student.vocab_size * student.embedding.shape[1])


def _per_entry(trained: bool) -> int:
    """The product, the gradient of its input, and where it is trained that of the entry."""
    return FORWARD * (3 if trained else 2)
