"""The transform behind an LM head: a factor and a soft cap, forward and for the gradient."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

BLOCK = {"cpu": 2**20, "cuda": 2**26}
"""Logits taken at once in float32: on a CPU as many as stay in its cache, on a GPU enough to keep it busy."""


class LogitTransform(BaseModel):
    """`cap · tanh(scale · z / cap)` of a logit z as the LM head gives it; without a cap `scale · z`.

    Gemma 2 caps, Cohere and Granite scale. Computed in float32 or wider and rounded once to the logits' dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    cap: float | None = Field(None, gt=0, allow_inf_nan=False)

    def of(self, logits: Tensor) -> Tensor:
        """The same of logits of any shape, differentiable, in their dtype."""
        wide = logits.to(_wide(logits)) * self.scale
        found = wide if self.cap is None else torch.tanh(wide / self.cap) * self.cap
        return found.to(logits.dtype)

    @torch.no_grad()
    def write(self, logits: Tensor, slope: Tensor | None = None) -> None:
        """Replace logits (n, V); `slope` (n, V) becomes the derivative of each, for `write_gradient`.

        Block by block, so beside the two memory does not grow with n.
        """
        for block, slopes in _blocks(logits, slope):
            wide = block.to(_wide(block)) * self.scale
            if self.cap is not None:
                wide.div_(self.cap).tanh_()
                if slopes is not None:
                    slopes.copy_((1 - wide.square()).mul_(self.scale))
                wide.mul_(self.cap)
            block.copy_(wide)

    @torch.no_grad()
    def write_gradient(self, gradient: Tensor, slope: Tensor | None) -> None:
        """Replace a gradient (n, V) in what `write` made by that in what it was given; `slope` is `write`'s."""
        gradient.mul_(self.scale if slope is None else slope)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _blocks(logits: Tensor, slope: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    rows = max(1, BLOCK.get(logits.device.type, BLOCK["cpu"]) // logits.shape[-1])
    blocks = torch.split(logits, rows)
    slopes = [None] * len(blocks) if slope is None else torch.split(slope, rows)
    return list(zip(blocks, slopes, strict=True))
