"""The Frobenius term (Eq. 37): how far the student's hidden states are from the teacher's, averaged over its layers."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from student.data.batch import AveragedStates

FrobeniusNorm = Literal["sequence", "batch"]


class StateMap(nn.Module):
    """A linear map from the student's hidden states to the teacher's averaged ones, trained beside the student.

    The student's states are normed and its channels are not the teacher's mean over layers: without a map, F hardly
    falls. It begins as the identity, of two widths as far as both go, and no export has it.
    """

    def __init__(self, width: int, teacher_width: int | None = None) -> None:
        super().__init__()
        self.width, self.teacher_width = width, teacher_width or width
        self.weight = nn.Parameter(torch.eye(self.teacher_width, width))
        self.bias = nn.Parameter(torch.zeros(self.teacher_width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """States (..., d) to the teacher's width, multiplied in the map's dtype, added up in float32 or float64."""
        # The bias by itself: under ZeRO 3 DeepSpeed puts a function of its own in place of `linear` for the life of the
        # process, and that one, in 16 bits, rounds the product and then the sum, where torch rounds once.
        products = functional.linear(hidden_states.to(self.weight.dtype), self.weight)
        return products.to(accumulation_dtype(products)) + self.bias


@dataclass(frozen=True)
class FrobeniusTerm:
    """How Eq. 37 is taken: the norm of what."""

    norm: FrobeniusNorm = "sequence"
    """One norm per sequence, or one over the micro-batch that counts for every sequence."""
    channel_rms: Tensor | None = None
    """(d,) what each channel of the teacher's is divided by; None leaves them as they are."""
    state_map: StateMap | None = None
    """Maps the student's states to the teacher's so divided; without it, the student's are divided too."""


def frobenius_sum(
    hidden_states: Tensor,  # (B, T, d)
    teacher: AveragedStates | None,
    loss_mask: Tensor,  # (B, T) bool
    term: FrobeniusTerm | None,
) -> Tensor:
    """Eq. 37 as a sum over sequences: `Σ_i ‖H̄_i - h_i‖_F / sqrt(numel_i)` over the valid positions that H̄ has.

    Where only some channels were drawn, their squares are weighted so that the expectation is the sum over all. With
    norm "batch" every sequence of the micro-batch counts with the one norm taken over all of them. A term or states of
    None give 0.
    """
    if teacher is None or term is None:
        return zero_with_gradient(hidden_states)
    dtype, (length, width) = accumulation_dtype(hidden_states), hidden_states.shape[1:]
    width = width if term.state_map is None else term.state_map.teacher_width
    places = teacher.positions.clamp(max=length - 1)
    mask = teacher.counted(loss_mask)
    states = hidden_states
    if places.shape[1] != length:
        states = states.take_along_dim(places[..., None], dim=1)
    squares = _squares(states, teacher, term, dtype) * mask[..., None]
    width_of_all = mask.sum(dim=1) * width
    if term.norm == "batch":
        whole = _root(squares.sum(), width_of_all.sum())
        return whole * mask.any(dim=1).sum()
    return _root(squares.sum(dim=(1, 2)), width_of_all).sum()


def _root(squares: Tensor, numel: Tensor) -> Tensor:
    """The root of a mean; 0, with a gradient of 0, where the sum is not positive."""
    mean = squares / numel.clamp(min=1)
    positive = mean > 0
    return torch.where(positive, torch.where(positive, mean, 1.0).sqrt(), 0.0)


def _squares(states: Tensor, teacher: AveragedStates, term: FrobeniusTerm, dtype: torch.dtype) -> Tensor:
    """Squared differences (B, P, k) whose weighted sum has the expectation of that over all channels."""

    def drawn(x: Tensor) -> Tensor:
        return x if teacher.channels is None else x.take_along_dim(teacher.channels, dim=-1)

    if term.state_map is not None:
        states = term.state_map(states)
    states, wanted, variance = drawn(states).to(dtype), teacher.values.to(dtype), teacher.variance
    if term.channel_rms is not None:
        rms = drawn(term.channel_rms.to(dtype).expand(*wanted.shape[:2], -1))
        wanted, variance = wanted / rms, None if variance is None else variance / rms.square()
        states = states if term.state_map is not None else states / rms
    squares = (wanted - states).square()
    if variance is not None:
        squares = squares - variance
    return squares if teacher.weights is None else squares * teacher.weights.to(dtype)


def zero_with_gradient(hidden_states: Tensor) -> Tensor:
    """A 0 to add to that has a gradient, so that a micro-batch without valid positions goes backward too."""
    return hidden_states[:0].sum(dtype=accumulation_dtype(hidden_states))


def zero_through_map(hidden_states: Tensor, state_map: StateMap) -> Tensor:
    """A 0 to add to that has a gradient, of zeros, for the map too."""
    nothing: Tensor = state_map(hidden_states[:0])
    return nothing.sum(dtype=accumulation_dtype(hidden_states))


def accumulation_dtype(hidden_states: Tensor) -> torch.dtype:
    """What sums over these states are added up in: float32, or float64 for float64."""
    return torch.promote_types(hidden_states.dtype, torch.float32)
