"""What can be done with a recurrent state as a whole; its tensors have rows in axis 0, but for sLSTM's in axis 1."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from student.model.blocks import RecurrentState

STACKED = "slstm_state"
"""h, c, n and m as one tensor (4, B, d)."""


def select_rows(state: RecurrentState, rows: Tensor) -> RecurrentState:
    """The state of some rows, in the order and as often as named by `rows` (n,)."""
    return _map(state, lambda tensor, axis: tensor.index_select(axis, rows.to(tensor.device)))


def forget_rows(state: RecurrentState, rows: Tensor) -> RecurrentState:
    """The state with those rows at zero where `rows` (B,) is true."""

    def forget(tensor: Tensor, axis: int) -> Tensor:
        shape = [1] * tensor.dim()
        shape[axis] = -1
        return torch.where(rows.view(shape), torch.zeros_like(tensor), tensor)

    return _map(state, forget)


def state_bytes(state: RecurrentState) -> int:
    """Memory that a state takes; it does not depend on how many tokens went into it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))


def _map(state: RecurrentState, change: Callable[[Tensor, int], Tensor]) -> RecurrentState:
    changed: RecurrentState = {}
    for block, parts in state.items():
        changed[block] = {
            name: change(part, 1) if name == STACKED else tuple(change(tensor, 0) for tensor in part)
            for name, part in parts.items()
        }
    return changed


def _tensors(state: RecurrentState) -> Iterator[Tensor]:
    for parts in state.values():
        for name, part in parts.items():
            yield from (part,) if name == STACKED else part
