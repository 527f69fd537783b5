"""What stands in an LM head's place, and what a head must be."""

import pytest
import torch
from torch import nn

from delta_common.errors import UserError
from student.model.causal_lm.head import StandIn, places_in_documents, require_linear, require_vocabulary


def test_hidden_states_go_on_or_are_asked() -> None:
    stand_in, states = StandIn(), torch.ones(2, 3)
    assert stand_in(states) is states
    stand_in.ask = torch.sum
    assert stand_in(states) == 6
    assert stand_in.found == 6


@pytest.mark.parametrize(("rows", "fits"), [(100, True), (1124, True), (1125, False), (99, False)])
def test_a_head_has_the_vocabularys_rows_and_some_padding(rows: int, fits: bool) -> None:
    if fits:
        require_vocabulary(rows, 100)
        return
    with pytest.raises(UserError, match=r"lm_head has [\d,]+ rows, the cache's tokenizer 100 tokens: another"):
        require_vocabulary(rows, 100)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    head = nn.Linear(2, 3)
    assert require_linear(head, "it") is head
    with pytest.raises(UserError, match="it: its LM head is no linear layer in floating point"):
        require_linear(nn.Embedding(2, 3), "it")


def test_places_begin_anew_with_each_document() -> None:
    starts = torch.tensor([[True, False, False, True, False], [False, False, True, True, False]])
    assert places_in_documents(starts).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
