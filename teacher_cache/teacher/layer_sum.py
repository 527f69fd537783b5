"""The sum of a teacher's hidden states over its layers, in float32, layer after layer."""

import torch
from torch import Tensor

from delta_common.installed import has_triton

AT_ONCE = 4
"""States that a GPU adds in one pass: the sum, twice as wide as each, then travels a quarter as often."""


class LayerSum:
    """Adds states (…, d) one after the other, with the same rounding whether one or several are added at once."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Take one more state, which must not change until the sum is asked for."""
        if self._total is None:
            self._total = state.float() if state.dtype != torch.float32 else state.clone()
        elif _has_kernel(state):
            self._waiting.append(state)
            if len(self._waiting) == AT_ONCE:
                self._add_waiting()
        else:
            self._total += state

    def sum(self) -> Tensor:
        """The sum (…, d) float32. Raises `ValueError` when there is nothing to sum."""
        self._add_waiting()
        if self._total is None:
            raise ValueError("no states were added")
        return self._total

    def _add_waiting(self) -> None:
        if self._waiting and self._total is not None:
            from teacher_cache.teacher.layer_sum_triton import add_in_turn

            add_in_turn(self._total, self._waiting)
            self._waiting.clear()


def _has_kernel(state: Tensor) -> bool:
    return state.is_cuda and state.is_contiguous() and has_triton()
