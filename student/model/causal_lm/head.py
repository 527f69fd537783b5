"""What stands in an LM head's place while a student gives its hidden states; torch only."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from delta_common.errors import UserError

MOST_PADDING = 1024
"""Rows of a head beyond the tokenizer's tokens that are taken for padding; the most seen is 943 (Phi-2)."""

BEHIND_THE_HEAD = (
    "the student scales or caps its logits behind lm_head, which a loss in chunks does not follow; take a student that "
    "does not"
)
UNKNOWN_BEHIND_THE_HEAD = (
    "the student changes its logits behind lm_head in a way that its configuration does not name (known are a factor "
    "and a soft cap); take another student"
)

AtHead = Callable[[Tensor], Tensor]
"""Hidden states (B, T, d), as they come to the head → what is wanted of them."""


class StandIn:
    """Called in place of a head: gives the hidden states on, or what `ask` makes of them.

    `found` is what it gave last: what comes out of the model may have gone through a transform of logits.
    """

    def __init__(self) -> None:
        self.ask: AtHead | None = None
        self.found: Tensor | None = None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        self.found = hidden_states if self.ask is None else self.ask(hidden_states)
        return self.found


def require_vocabulary(rows: int, vocab_size: int, where: str = "lm_head") -> None:
    """Raise `UserError` unless a head of this many rows is one over this many tokens, perhaps padded."""
    if not 0 <= rows - vocab_size <= MOST_PADDING:
        raise UserError(
            f"{where} has {rows:,} rows, the cache's tokenizer {vocab_size:,} tokens: another vocabulary; "
            "the student and the cache's teacher must have the same tokenizer"
        )


def require_linear(lm_head: object, where: str) -> nn.Linear:
    """The head; raises `UserError` for one that is no plain linear layer in floating point."""
    if not isinstance(lm_head, nn.Linear) or not lm_head.weight.is_floating_point():
        raise UserError(f"{where}: its LM head is no linear layer in floating point; take another student")
    return lm_head


def places_in_documents(document_start: Tensor) -> Tensor:
    """Each position's number in its document (B, T) int64, from where documents begin (B, T).

    Transformers' models keep documents apart by these, if they are given no attention mask.
    """
    places = torch.arange(document_start.shape[1], device=document_start.device)
    return places - torch.where(document_start, places, 0).cummax(dim=1).values
