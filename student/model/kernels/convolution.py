"""The causal depthwise convolution in front of a recurrence, with state and document starts.

    y_t = bias + Σ_j w_j x_{t-j},  j = 0 .. K-1, over the positions t - j of t's own document

Each tap is a shifted multiply-add on (B, T, F); torch's `Conv1d` needs (B, F, T), and several times as long.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

if TYPE_CHECKING:
    from xlstm.components.conv import CausalConv1d

ConvolutionState = tuple[Tensor]
"""As in xlstm: the last K inputs (B, K, F), oldest first, zeros where there were none."""


def causal_conv(
    conv: "CausalConv1d", x: Tensor, state: ConvolutionState | None = None, document_start: Tensor | None = None
) -> tuple[Tensor, ConvolutionState]:
    """The output of xlstm's `CausalConv1d` for inputs (B, T, F), and the state for its `step`.

    A document that starts at (b, t) of `document_start` (B, T) sees nothing before t, `state` included.
    """
    taps = conv.conv.weight.squeeze(1).flip(1).t()  # (K, F), the present one first
    size = len(taps)
    starts = document_start
    if state is not None:
        x = torch.cat([state[0].to(x.dtype), x], dim=1)
        starts = None if starts is None else pad(starts, (size, 0))
    sees = [] if starts is None else list(_same_document(starts, size))
    if torch.compiler.is_compiling():
        y = _plain_taps(x, taps, conv.conv.bias, sees)
    else:
        y = _Taps.apply(x, taps, conv.conv.bias, sees)  # type: ignore[no-untyped-call]
    return y if state is None else y[:, size:], (_last_inputs(x, starts, size),)


def _same_document(starts: Tensor, count: int) -> Iterator[Tensor]:
    """For j = 1 .. count - 1 whether t - j is of t's document, (B, T - j, 1) from t = j on."""
    begun = torch.zeros_like(starts)
    for j in range(1, min(count, starts.shape[1])):
        begun = begun | pad(starts, (j - 1, 0))[:, : starts.shape[1]]
        yield ~begun[:, j:, None]


def _last_inputs(x: Tensor, starts: Tensor | None, count: int) -> Tensor:
    last = pad(x[:, -count:], (0, 0, max(0, count - x.shape[1]), 0))
    if starts is None:
        return last.clone()
    begun_later = pad(starts, (count, 1))[:, -count:].flip(1).cumsum(1).flip(1) > 0
    return last.masked_fill(begun_later[..., None], 0)


def _plain_taps(x: Tensor, taps: Tensor, bias: Tensor, sees: Sequence[Tensor]) -> Tensor:
    """The naive twin of `_Taps`; a compiler makes one kernel of it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, taps = x.to(wide), taps.to(wide)
    y = bias.to(wide) + x_wide * taps[0]
    for j, tap in _earlier(taps, x.shape[1]):
        y = y + pad(_seen(x_wide[:, :-j], sees, j) * tap, (0, 0, j, 0))
    return y.to(x.dtype)


class _Taps(torch.autograd.Function):
    """x (B, T, F), taps (K, F), bias (F,) and the masks of `_same_document`, if any, to y (B, T, F)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, sees: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, taps, *sees)
        wide = torch.promote_types(x.dtype, torch.float32)
        x_wide, taps_wide = x.to(wide), taps.to(wide)
        y = torch.addcmul(bias.to(wide), x_wide, taps_wide[0])
        for j, tap in _earlier(taps_wide, x.shape[1]):
            y[:, j:].addcmul_(_seen(x_wide[:, :-j], sees, j), tap)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, *sees = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        d_y, taps_wide = d_y.to(wide), taps.to(wide)
        d_x = torch.empty_like(d_y)
        d_taps = torch.zeros_like(taps_wide)
        # On a CPU one row at a time stays in the caches.
        together = 1 if x.device.type == "cpu" else len(x)
        for begin in range(0, len(x), together):
            rows = slice(begin, begin + together)
            _backward_rows(d_y[rows], x[rows].to(wide), taps_wide, [mask[rows] for mask in sees], d_x[rows], d_taps)
        return d_x.to(x.dtype), d_taps.to(taps.dtype), d_y.sum((0, 1)).to(taps.dtype), None


def _backward_rows(d_y: Tensor, x: Tensor, taps: Tensor, sees: Sequence[Tensor], d_x: Tensor, d_taps: Tensor) -> None:
    """Fill `d_x` and add to `d_taps`."""
    torch.mul(d_y, taps[0], out=d_x)
    d_taps[0] += _column_sums(d_y * x)
    for j, tap in _earlier(taps, x.shape[1]):
        d_seen = _seen(d_y[:, j:], sees, j)
        d_x[:, :-j].addcmul_(d_seen, tap)
        d_taps[j] += _column_sums(d_seen * x[:, :-j])


def _earlier(taps: Tensor, length: int) -> list[tuple[int, Tensor]]:
    return [(j, taps[j]) for j in range(1, min(len(taps), length))]


def _seen(values: Tensor, sees: Sequence[Tensor], j: int) -> Tensor:
    return values * sees[j - 1] if sees else values


def _column_sums(values: Tensor) -> Tensor:
    """(B, T, F) to (F,); several times as fast as `sum` on a CPU."""
    flat = values.flatten(0, 1)
    return flat.t().mv(flat.new_ones(len(flat)))
