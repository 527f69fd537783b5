"""What every mixer of a forward pass is told: documents, places, rotary positions, the state to go on from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from student.model.blocks import RecurrentState
from student.model.transplant.families import Rotary
from student.model.transplant.options import MixerShape
from student.model.transplant.sums import window_flex

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Angles = tuple[Tensor, Tensor]

DOCUMENT = "document"
"""Where the state keeps how much of its document each row has seen."""


@dataclass(frozen=True)
class Angled:
    """Rotary positions of what a mixer with a window reads."""

    here: Angles
    """of the sequence, (B, 1, T, D)"""
    capped: Angles
    """of queries towards the sinks: no further from them than the teacher's longest text"""
    behind: Angles
    """of the window before the sequence, (B, 1, w, D)"""
    sinks: Angles
    """(1, 1, s, D)"""


@dataclass(frozen=True)
class Mixing:
    """One forward pass, as its mixers see it."""

    place: Tensor
    """Each position's place in its document, (B, T) int64, from 0."""
    document_start: Tensor | None
    """Where documents start (B, T); None if none starts but at the beginning of a sequence without a state."""
    place_behind: Tensor
    """Places of the w positions before the sequence, below 0 where there was none of the document, (B, w)."""
    angles: Angled | None
    """None without attention."""
    before: RecurrentState | None
    """The state before the sequence."""
    compiled: bool = False
    """Whether layers run compiled."""
    window_mask: "BlockMask | None" = None
    """What the window and the sinks see, where FlexAttention runs them."""
    after: RecurrentState | None = None
    """Where mixers put the state behind the sequence; None if nobody wants it."""
    transfer: list[tuple[Tensor, Tensor]] | None = None
    """Where mixers put their input and softmax attention's output, which they then give; None in ordinary use."""


def mixing_of(
    shape: MixerShape,
    rotary: Rotary,
    document_start: Tensor | None,
    state: RecurrentState | None,
    *,
    size: tuple[int, int],
    like: Tensor,
    want_state: bool,
    compiled: bool = False,
    rotated: bool = False,
) -> Mixing:
    """The mixing of `size` (B, T) positions that follow `state`; rotary positions in device and type of `like`.

    With `compiled` for layers that run compiled; with `rotated` rotary positions are there without attention too.
    """
    seen = state[DOCUMENT]["place"][0] if state else torch.zeros(size[0], dtype=torch.long, device=like.device)
    place = places(document_start, seen, size[1])
    behind = seen[:, None] + torch.arange(-shape.window, 0, device=like.device)
    if state:
        document_start = place == 0
    angles = None
    if shape.window or shape.attention_at or rotated:
        angles = _angles(shape, rotary, place, behind, like.dtype)
    after: RecurrentState | None = {DOCUMENT: {"place": (place[:, -1] + 1,)}} if want_state else None
    window_mask = None
    if shape.window and compiled and size[1] <= rotary.longest:
        window_mask = window_flex.block_mask(place, shape.window, shape.sinks)
    return Mixing(place, document_start, behind, angles, state or None, compiled, window_mask, after)


def _angles(shape: MixerShape, rotary: Rotary, place: Tensor, behind: Tensor, dtype: torch.dtype) -> Angled:
    return Angled(
        rotary.angles(place, dtype),
        rotary.angles(place.clamp(max=rotary.longest - 1), dtype),
        rotary.angles(behind.clamp(min=0), dtype),
        rotary.angles(torch.arange(shape.sinks, device=place.device)[None], dtype),
    )


def places(document_start: Tensor | None, seen: Tensor, length: int) -> Tensor:
    """Places in the document (B, T) int64, of rows that have seen (B,) positions of theirs before the sequence."""
    index = torch.arange(length, device=seen.device).expand(len(seen), length)
    if document_start is None:
        return index + seen[:, None]
    start = torch.where(document_start, index, -1).cummax(dim=1).values
    return torch.where(start < 0, index + seen[:, None], index - start)


def delayed(past: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K, w, ...) and (B, K, T, ...): what the sequence sees w positions late, and what is still to come, of w."""
    both = torch.cat([past.to(present.dtype), present], dim=2)
    return both[:, :, : present.shape[2]], both[:, :, present.shape[2] :]


def zeros_before(x: Tensor, count: int) -> Tensor:
    """`count` positions of zeros like those of x (B, K, T, ...), where a sequence has no state."""
    return functional.pad(x[:, :, :0], [0, 0] * (x.dim() - 3) + [0, count])
