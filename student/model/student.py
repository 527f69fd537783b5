"""Any student: what the trainer, evaluation and generation ask of it is the same for all."""

from student.model.transplant.student import TransplantStudent
from student.model.xlstm import XLSTMStudent

Student = XLSTMStudent | TransplantStudent

STATE_MAP = "state_map"
"""Name, within a student that trains, of what the loss trains beside it: engine and checkpoints have it, no export."""


def is_beside(name: str) -> bool:
    """Whether a parameter, by its name, is trained beside the student and not the student's own."""
    return name.startswith(f"{STATE_MAP}.")
