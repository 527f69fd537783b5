"""Places in documents, and what a sequence sees of the one before it."""

import torch

from student.model.transplant.mixing import delayed, places, zeros_before


def test_places_count_from_a_documents_start_and_go_on_from_what_was_seen() -> None:
    starts = torch.tensor([[False, False, True, False], [True, False, False, True]])
    found = places(starts, torch.tensor([5, 5]), 4)
    assert found.tolist() == [[5, 6, 0, 1], [0, 1, 2, 0]]
    assert places(None, torch.tensor([0, 3]), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_delayed_is_the_past_and_then_the_present() -> None:
    past, present = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[3.0], [4.0], [5.0]]]])
    seen, left = delayed(past, present)
    assert seen.flatten().tolist() == [1, 2, 3]
    assert left.flatten().tolist() == [4, 5]


def test_without_a_state_zeros_are_seen() -> None:
    zeros = zeros_before(torch.ones(2, 3, 4, 5), 6)
    assert zeros.shape == (2, 3, 6, 5)
    assert not zeros.any()
