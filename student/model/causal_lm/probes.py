"""What a model of transformers must be to be a student, tried on a few tokens."""

import torch
from torch import Tensor

from delta_common.errors import UserError
from delta_common.logits.configured import UnknownTransformError, injected_logits, transform_behind
from delta_common.logits.transform import LogitTransform
from student.model.causal_lm.head import UNKNOWN_BEHIND_THE_HEAD
from student.model.causal_lm.student import CausalLMStudent

LENGTH = 12
INJECTED = 64
"""Logits given in place of the head's, for each token."""
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
        student.logit_transform = logit_transform(student, where)
        if documents and not keeps_documents_apart(student):
            raise UserError(
                f"{where}: sees across the documents of a row, which the cache's teacher did not; take another "
                "student, or a cache built with rows.context: row"
            )
    student.train()


@torch.no_grad()
def logit_transform(student: CausalLMStudent, where: str) -> LogitTransform | None:
    """What the model makes of its head's logits; None for nothing. `UserError` for what its configuration names not.

    `where` is what names the student.
    """
    tokens, before = _tokens(student), student.logit_transform
    student.logit_transform = None  # to be given what comes out of the model
    given = injected_logits(INJECTED, tokens.device).expand(*tokens.shape, INJECTED)
    try:
        found = student(tokens, at_head=lambda _states: given)
        if found.shape != given.shape:
            raise UnknownTransformError
        return transform_behind(student.model.config.get_text_config(decoder=True), given, found)
    except UnknownTransformError as error:
        raise UserError(f"{where}: {UNKNOWN_BEHIND_THE_HEAD}") from error
    finally:
        student.logit_transform = before


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
