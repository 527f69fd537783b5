"""The operation around the kernels, with a stand-in in plain torch for them: places, memories, gradients, layouts."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from student.model.kernels.chunks import Memory
from student.model.transplant.sums import recurrence_fused
from student.model.transplant.sums.recurrence import HeadInputs, recurrence
from student.model.transplant.sums.weighted import Weighted
from tests.helpers.recurrence_cases import Case, worst_error

Pending = list[tuple[HeadInputs, Memory | None, Tensor | None]]


def _stand_in() -> ModuleType:
    """Fills what the kernels fill; its backward pass knows the memory from the forward pass before it."""
    module, pending = ModuleType("recurrence_triton"), []

    def forward(
        inputs: HeadInputs, begins: Tensor | None, memory: Memory | None, sums: Weighted, borders: Memory, after: Memory
    ) -> None:
        starts = None if begins is None else begins == torch.arange(begins.shape[1])
        pending.append((memory, starts))
        found, kept = recurrence(inputs, memory, starts)
        for room, x in zip((*sums, borders.m[..., -1]), (*found, kept.m), strict=True):
            room.copy_(x)
        if after.c.numel():
            after.c.copy_(kept.c)
            after.n.copy_(kept.n)

    def backward(
        inputs: HeadInputs,
        _begins: Tensor | None,
        _borders: Memory,
        log_scale: Tensor,
        d_values: Tensor,
        d_weight: Tensor,
    ) -> HeadInputs:
        """By the equations of the kernels, every query against every key."""
        memory, starts = pending.pop()
        q, k, i, forgotten = inputs.q, inputs.k, inputs.i, inputs.log_forget.cumsum(-1)
        v, length = inputs.values_of_each_head(), inputs.q.shape[2]
        number = torch.zeros(len(q), length) if starts is None else starts.cumsum(1)
        sees = torch.ones(length, length).tril().bool() & (number[:, :, None] == number[:, None])[:, None]
        factors = torch.exp(forgotten[..., :, None] - (forgotten - i)[..., None, :] - log_scale[..., None])
        factors = factors.masked_fill(~sees, 0)
        d_products = (d_values @ v.transpose(-1, -2) + d_weight[..., None]) * factors
        d_q, d_k = d_products @ k, d_products.transpose(-1, -2) @ q
        d_v = ((q @ k.transpose(-1, -2)) * factors).transpose(-1, -2) @ d_values
        if memory is not None:
            kept = torch.exp(forgotten + memory.m[..., None] - log_scale) * (number == 0)[:, None]
            before = d_values @ memory.c.transpose(-1, -2) + d_weight[..., None] * memory.n[:, :, None]
            d_q = d_q + kept[..., None] * before
        by_query, by_key = (q * d_q).sum(-1), (k * d_k).sum(-1)
        return HeadInputs(d_q, d_k, d_v, by_key, (by_query - by_key).flip(-1).cumsum(-1).flip(-1))

    module.forward, module.backward = forward, backward  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_sums_and_gradients_are_the_twins(monkeypatch: pytest.MonkeyPatch, documents: bool, memory: bool) -> None:
    import student.model.transplant.sums as room

    stand_in = _stand_in()
    monkeypatch.setitem(sys.modules, f"{room.__name__}.recurrence_triton", stand_in)
    monkeypatch.setattr(room, "recurrence_triton", stand_in, raising=False)
    case = Case(2, 4, 2, 70, 6, 5, torch.float32, documents=documents, memory=memory)
    assert worst_error(case) < 1e-5


def test_what_the_kernels_do_not_take_goes_elsewhere() -> None:
    q = torch.rand(1, 2, 8, 64, dtype=torch.bfloat16)
    gates = torch.zeros(1, 2, 8)
    assert not recurrence_fused.fits(HeadInputs(q, q, q, gates, gates), None), "not on a GPU"


def test_a_compiler_is_told_the_layout_that_comes() -> None:
    with torch.device("meta"):
        q, v, gates = torch.empty(2, 4, 70, 64), torch.empty(2, 2, 70, 64), torch.empty(2, 4, 70)
        found = torch.ops.delta.weighted_recurrence(q, q, v, gates, gates, None, None, None, None, True)
    assert [tuple(x.shape) for x in found[:3]] == [(2, 4, 70, 64), (2, 4, 70), (2, 4, 70)]
    assert found[0].stride() == (70 * 4 * 64, 64, 4 * 64, 1)
    assert found[6].shape == (2, 4, 64, 64)
