"""Every student answers to what the trainer, evaluation and generation ask of one."""

import inspect
from typing import get_args

import pytest

from student.model.student import Student
from student.model.xlstm import XLSTMStudent

ASKED = ("forward", "prefill", "step", "head", "logits", "parameter_counts")


@pytest.mark.parametrize("kind", get_args(Student))
@pytest.mark.parametrize("name", ASKED)
def test_students_have_one_interface(kind: type, name: str) -> None:
    ours, theirs = getattr(kind, name), getattr(XLSTMStudent, name)
    if callable(ours):
        wanted = list(inspect.signature(theirs).parameters)
        assert list(inspect.signature(ours).parameters)[: len(wanted)] == wanted
    else:
        assert isinstance(ours, property)
