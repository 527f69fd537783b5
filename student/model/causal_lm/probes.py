"""What a model of transformers must be to be a student, tried on a few tokens."""

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.model.causal_lm.head import BEHIND_THE_HEAD
from student.model.causal_lm.student import CausalLMStudent

MARK = 1000.0
"""Given where logits are expected: a scale or a cap of logits would change it."""
LENGTH = 12
CLOSE = 1e-3
"""Largest difference, relative to the largest hidden state, that is rounding."""


def require_fit(student: CausalLMStudent, *, row: int, documents: bool, where: str) -> None:
    """Raise `UserError` for a student that cannot learn from rows of this length.

    Args:
        student: in float32, in host memory.
        row: positions of a row.
        documents: whether each document of a row is to be seen by itself.
        where: what names the student.

    """
    longest = getattr(student.model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and longest < row:
        raise UserError(f"{where}: takes {longest:,} positions, the cache's rows have {row:,}; take another student")
    if getattr(student.model.config, "output_router_logits", False):
        raise UserError(f"{where}: balances its experts by a loss of its own; set output_router_logits to false")
    student.eval()
    with torch.no_grad():
        if not has_plain_logits(student):
            raise UserError(f"{where}: {BEHIND_THE_HEAD}")
        if documents and not keeps_documents_apart(student):
            raise UserError(
                f"{where}: sees across the documents of a row, which the cache's teacher did not; take another "
                "student, or a cache built with rows.context: row"
            )
    student.train()


def has_plain_logits(student: CausalLMStudent) -> bool:
    """Whether the model gives what its head gives."""
    tokens = _tokens(student)
    found = student(tokens, at_head=lambda states: torch.full_like(states[..., :1], MARK))
    return found.shape == (*tokens.shape, 1) and bool((found == MARK).all())


def keeps_documents_apart(student: CausalLMStudent) -> bool:
    """Whether a document in a row has the hidden states that it has by itself."""
    tokens = _tokens(student)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    half = LENGTH // 2
    starts[:, [0, half]] = True
    try:
        in_row = student(tokens, starts)[:, half:]
    except TypeError:  # it takes no positions
        return False
    alone = student(tokens[:, half:])
    return bool((in_row - alone).abs().max() <= CLOSE * alone.abs().max())


def _tokens(student: CausalLMStudent) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(student.vocab_size, (1, LENGTH), generator=generator).to(student.embedding.device)
