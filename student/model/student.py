"""Any student: what the trainer, evaluation and generation ask of it is the same for all."""

from collections.abc import Callable

from torch import Tensor

from student.model.causal_lm.head import AtHead
from student.model.causal_lm.student import CausalLMStudent
from student.model.transplant.student import TransplantStudent
from student.model.xlstm import XLSTMStudent

Student = XLSTMStudent | TransplantStudent | CausalLMStudent

STATE_MAP = "state_map"
"""Name, within a student that trains, of what the loss trains beside it: engine and checkpoints have it, no export."""


def is_beside(name: str) -> bool:
    """Whether a parameter, by its name, is trained beside the student and not the student's own."""
    return name.startswith(f"{STATE_MAP}.")


def asked_at_head(
    engine: Callable[..., Tensor], student: Student, tokens: Tensor, document_start: Tensor | None, ask: AtHead
) -> Tensor:
    """What `ask` makes of the student's hidden states; `engine` is the student as it is called.

    A head that is trained is asked within the student's own pass: under ZeRO 3 its weight is whole only there.
    """
    if isinstance(student, CausalLMStudent) and student.trains_head:
        return engine(tokens, document_start, at_head=ask)
    return ask(engine(tokens, document_start))
