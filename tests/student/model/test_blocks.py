"""Documents in one row are as if each had a row of its own, through the whole stack of blocks."""

import torch
from torch import Tensor

from student.model.xlstm import XLSTMStudent
from tests.helpers.documents import assert_same_gradients, spans, starts_of
from tests.helpers.small_students import small_student


def _documents() -> tuple[Tensor, Tensor]:
    """Tokens (2, 200) and starts: over chunk borders, side by side, at both ends of a row."""
    tokens = torch.randint(0, 40, (2, 200), generator=torch.Generator().manual_seed(0))
    return tokens, starts_of(200, ([0, 63, 64, 130, 131, 199], [20, 128]))


def _rows_apart(student: XLSTMStudent, tokens: Tensor, starts: Tensor) -> Tensor:
    rows = [[student(tokens[row : row + 1, span]) for span in spans(starts[row])] for row in (0, 1)]
    return torch.cat([torch.cat(parts, dim=1) for parts in rows])


def test_the_students_documents_are_as_if_apart() -> None:
    student, (tokens, starts) = small_student().double(), _documents()
    found, expected = student(tokens, starts), _rows_apart(student, tokens, starts)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert_same_gradients(found, expected, list(student.parameters()))


def test_the_students_documents_are_as_if_apart_in_float32() -> None:
    student, (tokens, starts) = small_student(), _documents()
    with torch.no_grad():
        found, expected = student(tokens, starts), _rows_apart(student, tokens, starts)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
