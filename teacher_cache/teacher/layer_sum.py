"""The sum of the teacher's hidden states over its layers, in float32, added as each layer finishes."""

import torch
from torch import Tensor

from delta_common.installed import has_triton

AT_ONCE = 4
"""States that a GPU adds in one pass: it then reads and writes the sum, twice as wide as each, a quarter as often."""


class LayerSum:
    """Adds hidden states (…, d) in order; adding several in one pass rounds as adding them one by one does."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Add a state. It must not change before `sum` is called: a GPU may add it later.

        The sum moves to the device that the state is on, for layers may be spread over several.
        """
        if self._total is not None and self._total.device != state.device:
            self._add_waiting()
            self._total = self._total.to(state.device)
        if self._total is None:
            self._total = state.float() if state.dtype != torch.float32 else state.clone()
        elif _has_kernel(state):
            self._waiting.append(state)
            if len(self._waiting) == AT_ONCE:
                self._add_waiting()
        else:
            self._total += state

    def sum(self) -> Tensor:
        """The sum (…, d) float32. Raises `ValueError` if no state was added."""
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
