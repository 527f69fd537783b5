"""Operations on a whole recurrent state. Rows are axis 0 of its tensors, except of sLSTM's, where they are axis 1."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from student.model.blocks import RecurrentState

STACKED = "slstm_state"
"""h, c, n and m as one tensor (4, B, d)."""
KEY_VALUES = "key_values"
"""What a model of transformers has for a state: its `cache` of keys and values, and which tokens were `seen` (B, N)."""


def select_rows(state: RecurrentState, rows: Tensor) -> RecurrentState:
    """The state of the rows numbered `rows` (n,), in that order; a row may be named more than once."""
    if KEY_VALUES in state:
        return {KEY_VALUES: _selected(state[KEY_VALUES], rows)}
    return _map(state, lambda tensor, axis: tensor.index_select(axis, rows.to(tensor.device)))


def forget_rows(state: RecurrentState, rows: Tensor) -> RecurrentState:
    """The state with zeros in the rows where `rows` (B,) is true."""

    def forget(tensor: Tensor, axis: int) -> Tensor:
        shape = [1] * tensor.dim()
        shape[axis] = -1
        return torch.where(rows.view(shape), torch.zeros_like(tensor), tensor)

    return _map(state, forget)


def compact(state: RecurrentState) -> RecurrentState:
    """The state with copies of what is a small part of a larger tensor, which nobody else may need any more."""

    def apart(tensor: Tensor, _: int) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().nbytes() > 2 * tensor.nbytes else tensor

    return _map(state, apart)


def state_bytes(state: RecurrentState) -> int:
    """Bytes of a state; the same however many tokens it has seen, but for layers that keep their attention."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))


def _selected(past: RecurrentState, rows: Tensor) -> RecurrentState:
    """Of keys and values, which are changed in place."""
    rows = rows.to(past["seen"].device)
    past["cache"].reorder_cache(rows)
    return {"cache": past["cache"], "seen": past["seen"].index_select(0, rows)}


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
