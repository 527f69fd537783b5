"""Where documents begin, by mask and by positions."""

import torch
from torch import Tensor

from student.inference.hf_inputs import document_starts, ends_in_padding

TOKENS = torch.zeros(2, 5, dtype=torch.long)


def starts(mask: list[list[int]] | None, positions: list[list[int]] | None, past: int | None = None) -> Tensor | None:
    tensors = (None if given is None else torch.tensor(given) for given in (mask, positions))
    return document_starts(*tensors, TOKENS, past, {})


def test_plain_positions_begin_nothing() -> None:
    assert starts(None, [[0, 1, 2, 3, 4]]) is None
    assert starts([[1] * 5] * 2, [[5, 6, 7, 8, 9]], past=5) is None


def test_a_position_of_0_begins_a_document_and_padding_none() -> None:
    found = starts([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]])
    assert found is not None
    assert found.int().tolist() == [[0, 0, 1, 0, 1], [1, 0, 1, 0, 0]]


def test_positions_of_one_row_are_those_of_all() -> None:
    found = starts(None, [[0, 1, 0, 1, 2]])
    assert found is not None
    assert found.int().tolist() == [[1, 0, 1, 0, 0]] * 2


def test_padding_on_the_right_of_any_row_is_an_end() -> None:
    assert ends_in_padding(torch.tensor([[1, 1], [1, 0]]))
    assert not ends_in_padding(torch.tensor([[0, 1], [1, 1]]))
