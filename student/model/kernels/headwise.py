"""Head by head around a recurrence: projections by diagonal blocks, and the norm of its outputs."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from xlstm.components.linear_headwise import LinearHeadwiseExpand
    from xlstm.components.ln import MultiHeadLayerNorm


def project_heads(projection: "LinearHeadwiseExpand", x: Tensor) -> Tensor:
    """xlstm's `LinearHeadwiseExpand` without bias of (..., F), in about half the time on a CPU.

    Positions are the last dimension of the product; the blocks are too small for that.
    """
    weight: Tensor = projection.weight  # (blocks, out, in)
    by_block = x.reshape(-1, weight.shape[0], weight.shape[2]).permute(1, 2, 0)
    return (weight @ by_block).permute(2, 0, 1).reshape(*x.shape[:-1], -1)


def normalise_heads(norm: "MultiHeadLayerNorm", h: Tensor) -> Tensor:
    """xlstm's `MultiHeadLayerNorm` of (B, H, T, D), with heads side by side: (B, T, H·D)."""
    normed = functional.layer_norm(h, h.shape[-1:], eps=norm.eps)
    weight: Tensor = norm.weight_proxy
    return normed.transpose(1, 2).flatten(2) * weight
