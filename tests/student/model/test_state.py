"""A recurrent state as a whole: rows chosen, rows forgotten, its size."""

import torch
from torch import Tensor

from student.model.state import compact, forget_rows, select_rows
from tests.helpers.small_students import small_student, tokens_of


def test_chosen_rows_of_a_state_go_on_as_they_would_have() -> None:
    student, tokens = small_student().double(), tokens_of(3, 8)
    rows = torch.tensor([2, 0, 2])
    with torch.no_grad():
        _, state = student.prefill(tokens[:, :7])
        chosen = select_rows(state, rows)
        expected, _ = student.step(tokens[:, 7:], state)
        found, _ = student.step(tokens[rows, 7:], chosen)
    assert torch.equal(found, expected[rows])


def test_forgotten_rows_are_empty_and_the_others_untouched() -> None:
    student = small_student()
    with torch.no_grad():
        _, state = student.prefill(tokens_of(2, 5))
    gone = forget_rows(state, torch.tensor([True, False]))
    for row, expected in ((0, None), (1, state)):
        kept = select_rows(gone, torch.tensor([row]))
        wanted = select_rows(expected, torch.tensor([row])) if expected else None
        for block, parts in kept.items():
            for name, part in parts.items():
                tensors = [part] if isinstance(part, Tensor) else part
                theirs = wanted and wanted[block][name]
                for place, tensor in enumerate(tensors):
                    if wanted is None:
                        assert not tensor.any()
                    else:
                        assert torch.equal(tensor, theirs if isinstance(theirs, Tensor) else theirs[place])


def test_what_is_part_of_a_larger_tensor_is_copied_and_the_rest_is_not() -> None:
    large, small = torch.arange(30.0).view(3, 10), torch.ones(3, 2)
    found = compact({"layer_0": {"values": (large[:, 8:], small)}})["layer_0"]["values"]
    assert torch.equal(found[0], large[:, 8:])
    assert found[0].untyped_storage().nbytes() == found[0].nbytes
    assert found[1] is small
