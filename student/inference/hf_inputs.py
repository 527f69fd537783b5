"""What callers of transformers give a student: where its rows begin, and one line for what it cannot take."""

from typing import Any

from torch import Tensor
from torch.nn.functional import pad

PACKED_WORDS = ("cu_seq_lens_q", "seq_idx")
"""What flattening collators may add to `position_ids`, or give in their place."""


def require_known(past: Any, state_class: type, inputs_embeds: Tensor | None, wanted: dict[str, Any]) -> None:
    """Raise `ValueError` for a foreign cache, for embeddings as inputs, and for outputs that a student does not give.

    `wanted` are names of such outputs and whether the call asks for them.
    """
    if past is not None and not isinstance(past, state_class):
        raise ValueError(
            f"past_key_values: a student keeps no {type(past).__name__}; give none, or what the last call returned"
        )
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds: a student reads its own frozen embedding; give input_ids")
    for name, value in wanted.items():
        if value:
            raise ValueError(
                f"{name}: a student returns none; leave it out, or call model.base_model for the last states"
            )


def document_starts(
    mask: Tensor | None, positions: Tensor | None, tokens: Tensor, past_length: int | None, others: dict[str, Any]
) -> Tensor | None:
    """Where documents begin (B, T), from the mask and the positions that come with tokens (B, T); None if nowhere new.

    A document begins where its position is 0, as flattening collators pack them. `past_length` is None at the start of
    a text; `others` are the call's further arguments. Raises `ValueError` for what a recurrence cannot follow.
    """
    starts = _row_starts(mask, tokens.shape[1], past_length)
    if positions is None:
        if given := [word for word in PACKED_WORDS if others.get(word) is not None]:
            raise ValueError(f"{given[0]}: packed documents are told by position_ids; give them too")
        return starts
    length = tokens.shape[1]
    if positions.dim() != 2 or positions.shape[1] != length or positions.shape[0] not in (1, tokens.shape[0]):
        raise ValueError(f"position_ids: of shape {tuple(positions.shape)}; give {tuple(tokens.shape)}, one per token")
    packed = (positions == 0).expand(tokens.shape)
    if mask is not None:
        packed = packed & mask.bool()[:, -length:]
    # The first token of a text begins a document anyway.
    if not bool(packed[:, int(past_length is None) :].any()):
        return starts
    return packed if starts is None else packed | starts


def ends_in_padding(mask: Tensor | None) -> bool:
    """Whether a row of the mask is padded on the right."""
    return mask is not None and not bool(mask[:, -1].all())


def _row_starts(mask: Tensor | None, length: int, past_length: int | None) -> Tensor | None:
    """Where the rows begin (B, length), from a mask over these positions or over all so far; None without padding.

    A row begins where its mask turns to 1; there the student forgets the padding.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[1] < length:
        raise ValueError(
            f"attention_mask: of shape {tuple(mask.shape)}; give one of (rows, tokens), 1 where a token is"
        )
    if (past_length is not None and length == 1) or bool(mask.all()):
        return None
    seen = mask.bool()
    goes_on = past_length is not None and seen.shape[1] == length
    starts = seen & ~pad(seen[:, :-1], (1, 0), value=goes_on)
    if bool((starts.sum(1) > 1).any()) or (goes_on and bool(starts.any())):
        raise ValueError("attention_mask: a row has padding between its tokens; pad on the left")
    return starts[:, -length:]
