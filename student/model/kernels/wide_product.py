"""Products of 16-bit factors whose sums are not rounded to 16 bits: what is added to a logarithm must not be coarse."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` of x (..., F) and weight (G, F), in float32 or wider; gradients in the types of the factors."""
    found: Tensor = _WideProduct.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], -1)


class _WideProduct(torch.autograd.Function):
    """x (N, F) and weight (G, F) to (N, G)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.is_cuda and x.element_size() == 2:
            return torch.mm(x, weight.t(), out_dtype=torch.float32)
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) @ weight.to(wide).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        d_y = d_y.to(x.dtype)
        return d_y @ weight if wants_x else None, d_y.t() @ x if wants_weight else None
