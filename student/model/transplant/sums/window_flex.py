"""The window and the sinks through torch's FlexAttention, for whole sequences on a GPU inside `torch.compile`.

`window.window` is the twin, which also takes what lies before the sequence.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from student.model.transplant.sums.weighted import Weighted

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def block_mask(place: Tensor, size: int, sinks: int) -> "BlockMask":
    """Who sees whom in a sequence without a state, from places in the document (B, T)."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = place.shape
    begin = torch.arange(length, device=place.device) - place

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = begin[row, query]
        return (key <= query) & (key >= first) & ((query - key < size) | (key - first < sinks))

    return create_block_mask(sees, rows, None, length, length, device=place.device)


def window(q: Tensor, k: Tensor, v: Tensor, mask: "BlockMask", scaling: float) -> Weighted:
    """Weighted sums of queries (B, H, T, D) over keys and values (B, K, T, D), rotary positions applied."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    found, beside = flex_attention(
        q, k, v, block_mask=mask, scale=scaling, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    logarithm = beside.lse
    assert logarithm is not None
    return Weighted(found.to(logarithm.dtype), torch.ones_like(logarithm), logarithm)
